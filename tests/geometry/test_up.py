"""The plane that an animal walks in, found among rearing and noise; or said not to be there."""

import numpy as np

from mouselift_jax.geometry.up import floor_normal, levelled_on_floor


def walk(rng, n=200):
    return np.stack([150 * np.cos(rng.uniform(0, 6, n)), 90 * rng.uniform(-1, 1, n),
                     15 + rng.normal(0, 2, n)], 1)  # fmt: skip


def test_the_floor_of_a_walk_is_found_through_rearing():
    rng = np.random.default_rng(0)
    path = walk(rng)
    path[:30, 2] += rng.uniform(20, 60, 30)  # rears in one corner
    path[:30, 0] += 100
    path[5] = np.nan
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    normal, spreads = floor_normal(path @ turn.T, turn @ [0.3, 0.2, 0.9])
    assert np.degrees(np.arccos(normal @ turn[:, 2])) < 1.0
    assert spreads[0] > spreads[1] > 10 * spreads[2]
    assert np.allclose(floor_normal(path, np.array([0, 0, -1.0]))[0], -turn.T @ normal, atol=1e-9)


def test_the_world_stands_on_what_is_lowest():
    rng = np.random.default_rng(2)
    body = rng.normal(size=(20, 3)) * [25, 12, 0] + [0, 0, 15]
    body[:4, 2] = 0  # paws
    points = walk(rng, 80)[:, None] * [1, 1, 0] + body
    points[::4, 8:] += [0, 0, 30]  # rears: the paws stay down
    points[3, 5] = [0, 0, -500]  # a wrong keypoint
    points[7, 2] = np.nan
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.linalg.det(turn)
    there = points.reshape(-1, 3) @ turn.T + [30.0, -20.0, 11.0]
    frame = np.repeat(np.arange(80), 20)
    move, error = levelled_on_floor(there, frame, turn @ [0.1, 0.2, 0.9])
    stood = move.apply(there).reshape(80, 20, 3)
    assert np.nanmax(np.abs(stood[:, :4, 2])) < 1.5 and error < 0.5 and move.scale == 1
    assert np.linalg.det(move.R) > 0
    assert levelled_on_floor(there[:20], frame[:20], turn[:, 2]) is None


def test_a_line_a_place_and_a_moment_tell_no_floor():
    rng = np.random.default_rng(1)
    line = walk(rng) * [1, 0, 0] + rng.normal(0, 2, (200, 3))
    up = np.array([0, 0, 1.0])
    assert floor_normal(line, up) is None
    assert floor_normal(rng.normal(0, 2, (200, 3)), up) is None
    assert floor_normal(walk(rng)[:10], up) is None
    assert floor_normal(np.full((50, 3), np.nan), up) is None
