// A browser starts no worker for a page that was opened from the disk. The site's search runs in a worker, so on such
// a page this class takes the worker's place: it runs the script in a hidden frame and passes the messages on.
class FrameWorker extends EventTarget {
  constructor(url) {
    super();
    const frame = document.createElement("iframe");
    frame.hidden = true;
    document.body.append(frame);
    const inside = frame.contentWindow;
    inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
    this.ready = new Promise((resolve) => {
      const script = inside.document.createElement("script");
      script.src = new URL(url, document.baseURI);
      script.onload = () => resolve(inside);
      inside.document.body.append(script);
    });
  }

  postMessage(data) {
    this.ready.then((inside) => inside.dispatchEvent(new MessageEvent("message", { data })));
  }
}

if (location.protocol === "file:") {
  window.Worker = FrameWorker;
}
