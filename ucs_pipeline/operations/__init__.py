"""What an operator does with a feed."""
