"""The workflow, free of Flower, and the Flower ServerApp."""
