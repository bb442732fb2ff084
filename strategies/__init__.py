"""What connects Oblivion to Flower's grid and strategies."""
