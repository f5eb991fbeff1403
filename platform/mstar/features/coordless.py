"""Features of patches whose place is not known: others computed them and kept no coordinates.

Heads are trained on them like on any others. What needs a place, such as patch targets, heatmaps
and the layouts of tools that store coordinates, refuses them by `require_coords`.
"""

import numpy as np

from mstar.errors import FeatureError
from mstar.schema import Grid

NO_COORDS = "none"
WARNING = "without coordinates: fit for heads, but no targets and no heatmaps can be made"


def coordless_grid(slide_id: str, num_patches: int, *, layout: str, mpp: float = 0.0) -> Grid:
    """A grid that says how many patches there are, and of nothing where it is.

    Every coordinate is -1, which no slide has; sizes and magnifications are 0.
    """
    return Grid(
        slide_id=slide_id,
        coords=np.full((num_patches, 2), -1, np.int64),
        grid_mode=NO_COORDS,
        patch_px=0,
        patch_size_l0=0,
        overlap_px=0,
        read_level=0,
        read_px=0,
        output_px=0,
        mpp=mpp,
        target_mpp=0.0,
        effective_mpp=0.0,
        level0_magnification=0.0,
        target_magnification=0.0,
        width_l0=0,
        height_l0=0,
        provenance={"imported_from": layout, "coordinates": "unknown"},
    )


def require_coords(grid: Grid, uri: str, purpose: str) -> None:
    """Raises FeatureError when it is not known where the patches of a slide are.

    purpose: what needs that, as "patch targets".
    """
    if not grid.has_coords:
        raise FeatureError(
            f"{uri}: {purpose} need to know where patches are, and these features were imported "
            "without coordinates. Import them with their coordinate files (--coords), or embed "
            "the slide with `mstar embed`."
        )
