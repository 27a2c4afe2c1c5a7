"""What launches bricks, and what reports failures."""
