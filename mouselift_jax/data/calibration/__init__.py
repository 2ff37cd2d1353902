"""Cameras mended by what they saw of the animal, and the sightings that tell."""
