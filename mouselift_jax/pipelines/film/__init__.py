"""One animal through time: Gaussians that keep their identity. Pure functions of arrays.

    rest = rest_of(fit(views, start(views, ...), ...), settings.nodes, cameras)
    last, before = at_rest(rest), None
    for views in later_frames:                              all in one world
        done = follow(views, rest, expected(last, before, settings.trust), settings,
                      cameras)
        last, before = done.motion, last
        posed(rest, last)                                   the same Gaussians, moved

Some hundred nodes on the skin move rigidly, each by itself, and neighbours want to move alike; a
Gaussian goes where its nodes carry it, and a little of its own. Its size and opacity stay, its
colour changes with the light about its nodes.
"""

from mouselift_jax.pipelines.film.follow import Followed, follow
from mouselift_jax.pipelines.film.motion import Motion, at_rest, expected, posed, product
from mouselift_jax.pipelines.film.rest import Rest, rest_of
from mouselift_jax.pipelines.film.settings import FilmSettings

__all__ = [
    "FilmSettings", "Followed", "Motion", "Rest", "at_rest", "expected", "follow", "posed",
    "product", "rest_of",
]  # fmt: skip
