"""The file layouts of the field's other tools, as one table.

| layout | written | slide ids with folders | slide without tissue |
|---|---|---|---|
| clam | patches/, h5_files/, pt_files/ | `/` becomes `%2F` | no file, as CLAM |
| mstar | patches/, h5_files/<model>/, pt_files/<model>/ | `/` becomes `%2F` | no file |
| trident | <mag>x_<px>px_<overlap>px_overlap/ patches/, features_<encoder>/ | `%2F` | (0, D) |
| stamp | <extractor>/<slide_id>.h5 | folders | no file |
| plain | <slide_id>.npy, <slide_id>_coords.npy | folders | (0, D) |
"""

from typing import Literal

from mstar.features.layouts import clam, mstar, plain, stamp, trident
from mstar.features.layouts.contract import Layout

LayoutName = Literal["clam", "mstar", "trident", "stamp", "plain"]

LAYOUTS: dict[str, Layout] = {
    "clam": Layout(
        name="clam",
        flat=True,
        keeps_empty=False,
        names_encoder=False,
        write=clam.write,
        write_grid=clam.write_grid,
        find=clam.find,
        read=clam.read,
        misfit=clam.misfit,
    ),
    "mstar": Layout(
        name="mstar",
        flat=True,
        keeps_empty=False,
        names_encoder=True,
        write=mstar.write,
        write_grid=mstar.write_grid,
        find=mstar.find,
        read=mstar.read,
        misfit=mstar.misfit,
    ),
    "trident": Layout(
        name="trident",
        flat=True,
        keeps_empty=True,
        names_encoder=True,
        write=trident.write,
        write_grid=trident.write_grid,
        find=trident.find,
        read=trident.read,
        misfit=trident.misfit,
    ),
    "stamp": Layout(
        name="stamp",
        flat=False,
        keeps_empty=False,
        names_encoder=True,
        write=stamp.write,
        write_grid=None,
        find=stamp.find,
        read=stamp.read,
        misfit=stamp.misfit,
    ),
    "plain": Layout(
        name="plain",
        flat=False,
        keeps_empty=True,
        names_encoder=False,
        write=plain.write,
        write_grid=None,
        find=plain.find,
        read=plain.read,
        misfit=plain.misfit,
    ),
}
