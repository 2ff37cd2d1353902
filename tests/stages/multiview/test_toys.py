"""Toy networks of a run of several processes."""

from __future__ import annotations

import pytest

from configs import mvdiff as config_file
from mouselift_jax.runs.folder import Options, Workdir
from mouselift_jax.stages.multiview import toys
from mouselift_jax.stages.multiview.settings import MultiviewSettings
from tests.sample_sets import write_samples


@pytest.mark.parametrize("primary", [True, False])
def test_only_the_first_process_writes_and_decides(tmp_path, monkeypatch, primary):
    """All train together; a process that sees the first one's files must not leave the others."""
    config, written, said = MultiviewSettings.of(config_file.get_config("tiny")), [], []
    monkeypatch.setattr(toys, "train_toy_vae", lambda *a: said.append("trained") or ({}, 1.0))
    monkeypatch.setattr(toys, "save_component", lambda *a: written.append(a[1]))
    monkeypatch.setattr(toys, "write_json_atomic", lambda path, value: written.append(path.name))
    monkeypatch.setattr(toys.distributed, "agree", lambda value: said.append(value) or value)
    monkeypatch.setattr(toys.distributed, "barrier", said.append)
    folder = tmp_path / "run"
    if not primary:  # the first process is done already
        (folder / toys.SETTINGS[-1]).parent.mkdir(parents=True)
        (folder / toys.SETTINGS[-1]).write_text("{}")
    with Workdir(folder, {"stage": "mvdiff"}, Options(primary=primary)) as workdir:
        toys.make_toys(config, workdir, tmp_path)
    assert said == [0, "trained", "toy networks"]
    assert ("vae" in written) == primary and bool(written) == primary


def test_the_toy_autoencoder_sees_the_views_of_the_network_alone(tmp_path, monkeypatch):
    """Sets drawn from fits hold further views behind those of the rig."""
    samples = write_samples(tmp_path / "set", n=3, n_val=1, views=8)
    values = config_file.get_config("tiny")
    values.data.size = 32
    config = MultiviewSettings.of(values)

    class Stop(Exception):
        pass

    def fit(self, folder, batches, **how):
        raise Stop(next(batches(0)).shape)

    monkeypatch.setattr(toys.Trainer, "fit", fit)
    coder = toys.vae.VAE(toys.vae.VAEConfig(**toys.toy_configs(config)["vae"]))
    with Workdir(tmp_path / "run", values) as workdir, pytest.raises(Stop) as shape:
        toys.train_toy_vae(config, coder, workdir, samples)
    assert shape.value.args[0][1:] == (config.model.n_views, 32, 32, 3)
