#!/usr/bin/env bash
# The names of the columns of a DeepLabCut .h5 are a pickle: reading the file by pandas runs it.
#
# The likely guess: keypoints in HDF5 are plain arrays; names, coordinates and scorers are datasets or
# text attributes, and a file from another lab is data, which at worst fails to parse.
# What happens: DeepLabCut writes through pandas (to_hdf, format="table"). The numbers are one
# compound dataset (index, values_block_0) without any name; which column is which body part stands in
# the attribute non_index_axes only, a Python pickle of protocol 0 that PyTables unpickles while the
# file is opened. Any HDF5 library sees bytes that begin with "(lp0". So a reader without pandas must
# unpickle by itself, and should do it with every class forbidden: tuples and text are all it needs.
# Why it matters here: `check` reads these files from strangers, with h5py alone, by an unpickler that
# knows no class.
# Source: pandas/io/pytables.py (AppendableFrameTable), PyTables' AttributeSet
#
# Needs python3. Run: bash findings/deeplabcut_h5_names_are_a_pickle.sh
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv v; v/bin/pip install -q pandas==3.1.1 tables==3.11.1 h5py==3.16.0
cat > names.py <<'PY'
import pickletools
import h5py, numpy as np, pandas as pd
columns = pd.MultiIndex.from_product([["net"], ["nose", "tail"], ["x", "y", "likelihood"]],
                                     names=["scorer", "bodyparts", "coords"])
pd.DataFrame(np.zeros((4, 6)), columns=columns).to_hdf("a.h5", key="df_with_missing", format="table")
with h5py.File("a.h5") as file:
    group = file["df_with_missing"]
    names = []
    file.visit(names.append)
    plain = [n for n in names if "nose" in n]
    table = group["table"]
    raw = bytes(group.attrs["non_index_axes"])
    print("fields", table.dtype.names, "nose in a name or dataset:", bool(plain))
    print("attribute", raw[:5], "nose" in raw.decode(), next(pickletools.genops(raw))[0].name)
PY
v/bin/python names.py | tee seen
[ "$(cat seen)" = "fields ('index', 'values_block_0') nose in a name or dataset: False
attribute b'(lp0\\n' True MARK" ] || { echo "CHANGED"; exit 1; }
