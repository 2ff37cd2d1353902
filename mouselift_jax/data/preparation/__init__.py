"""A recording becomes samples: frames chosen, animal placed, views cut, every sample proved."""
