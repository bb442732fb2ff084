"""The Flower ClientApp and the host behind it."""
