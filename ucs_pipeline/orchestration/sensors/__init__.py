"""Sensors that launch bricks, and sensors that report failures."""
