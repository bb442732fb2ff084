"""The workflow, which is free of Flower, and the Flower ServerApp."""
