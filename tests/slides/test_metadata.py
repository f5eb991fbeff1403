"""The resolution is found, checked and, when it cannot be trusted, refused with a way out."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageCms

from mstar.errors import MppError
from mstar.slides.metadata import MppChoice, SlideMetadata, choose_mpp, parse_metadata
from mstar.slides.reader import open_slide
from support.slides import SlideSpec, write_slide


def metadata_of(**properties: str) -> SlideMetadata:
    """Metadata parsed from properties whose dots are written as `__` and dashes as `_`."""
    named = {key.replace("__", ".").replace("_", "-"): value for key, value in properties.items()}
    return parse_metadata(named, size_l0=(1000, 800))


def with_mpp(x: float | None, y: float | None = None, power: float | None = None) -> SlideMetadata:
    """Metadata with a resolution and an objective power."""
    properties = {"openslide.vendor": "aperio"}
    if x is not None:
        properties |= {"openslide.mpp-x": repr(x), "openslide.mpp-y": repr(y or x)}
    if power is not None:
        properties["openslide.objective-power"] = repr(power)
    return parse_metadata(properties, size_l0=(1000, 800))


# ------------------------------------------------------------------------- where it is found


@pytest.mark.parametrize(
    ("spec", "source"),
    [
        (SlideSpec(mpp=0.2527), "openslide"),
        (SlideSpec(mpp=0.2527, vendor="generic", resolution_unit=2), "tiff-resolution"),
        (SlideSpec(mpp=0.2527, vendor="generic", resolution_unit=3), "tiff-resolution"),
        (SlideSpec(mpp=None), "none"),
        (SlideSpec(mpp=None, vendor="generic"), "none"),
    ],
)
def test_files_that_state_their_resolution_are_believed(
    spec: SlideSpec, source: str, tmp_path: Path
) -> None:
    slide = open_slide(write_slide(tmp_path / "a.svs", spec))
    assert slide.metadata.mpp_source == source
    expected = None if spec.mpp is None else pytest.approx(spec.mpp, rel=1e-4)
    assert slide.metadata.mpp == expected
    slide.close()


@pytest.mark.parametrize(("unit", "um"), [("inch", 25_400), ("centimeter", 10_000)])
def test_resolution_tags_are_taken_where_openslide_states_nothing(unit: str, um: float) -> None:
    tags = {"tiff.XResolution": repr(um / 0.25), "tiff.YResolution": repr(um / 0.26)}
    properties = {"openslide.vendor": "aperio", "tiff.ResolutionUnit": unit, **tags}
    metadata = parse_metadata(properties, size_l0=(10, 10))
    assert metadata.mpp_source == "tiff-resolution"
    assert (metadata.mpp_x, metadata.mpp_y) == pytest.approx((0.25, 0.26))
    assert metadata.mpp == pytest.approx(0.255)


def test_screen_resolution_gives_way_to_the_aperio_comment() -> None:
    """Converted slides carry 72 dots per inch, 353 µm, beside a comment that knows."""
    properties = {
        "openslide.vendor": "generic-tiff",
        "openslide.mpp-x": "352.78",
        "openslide.mpp-y": "352.78",
        "tiff.ImageDescription": "Aperio Image Library v11|AppMag = 40|MPP = 0.2520|Left = 2",
    }
    metadata = parse_metadata(properties, size_l0=(10, 10))
    assert (metadata.mpp, metadata.mpp_source) == (0.252, "aperio-comment")
    del properties["tiff.ImageDescription"]
    with pytest.raises(MppError, match=r"absurd mpp 352\.78"):
        choose_mpp("s", parse_metadata(properties, size_l0=(10, 10)))


@given(text=st.text())
def test_no_text_in_a_property_breaks_the_parser(text: str) -> None:
    keys = ("openslide.mpp-x", "openslide.objective-power", "openslide.background-color")
    keys += ("openslide.bounds-x", "openslide.comment", "tiff.XResolution")
    metadata = parse_metadata(dict.fromkeys(keys, text), size_l0=(7, 5))
    assert metadata.bounds_l0 == (0, 0, 7, 5)  # one of four bounds is none


def test_numbers_with_a_comma_background_and_bounds_are_understood() -> None:
    metadata = metadata_of(
        openslide__vendor="mirax",
        openslide__mpp_x="0,2322",
        openslide__mpp_y="0,2322",
        openslide__background_color="10203F",
        openslide__bounds_x="11",
        openslide__bounds_y="22",
        openslide__bounds_width="333",
        openslide__bounds_height="444",
    )
    assert metadata.mpp == pytest.approx(0.2322)
    assert metadata.background == (16, 32, 63)
    assert metadata.bounds_l0 == (11, 22, 333, 444)


def test_a_colour_profile_is_kept_and_not_applied(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain = open_slide(write_slide(tmp_path / "plain.svs", SlideSpec(full=True)))
    spec = SlideSpec(full=True, icc_profile=profile)
    coloured = open_slide(write_slide(tmp_path / "icc.svs", spec))
    kept = coloured.metadata.icc_profile
    assert kept is not None
    assert "sRGB" in ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(kept)))
    assert plain.metadata.icc_profile is None
    assert (coloured.read(0, 9, 9, 300, 300) == plain.read(0, 9, 9, 300, 300)).all()
    plain.close()
    coloured.close()


# ------------------------------------------------------------------------- which is used


def test_a_sound_value_is_used_as_it_is() -> None:
    assert choose_mpp("s", with_mpp(0.25, power=40)) == MppChoice(mpp=0.25, source="openslide")


@pytest.mark.parametrize("missing", ["error", "skip", "from-objective"])
def test_a_stated_value_wins_over_everything(missing: str) -> None:
    for metadata in (with_mpp(None), with_mpp(999.0), with_mpp(0.2, 0.4), with_mpp(0.25, power=40)):
        choice = choose_mpp("s", metadata, stated=0.5, missing=missing)  # type: ignore[arg-type]
        assert (choice.mpp, choice.source) == (0.5, "stated")
    assert "overrides 0.25" in (choice.warning or "")


BAD: list[Callable[[], SlideMetadata]] = [
    lambda: with_mpp(None, power=40),
    lambda: with_mpp(0.049, power=40),
    lambda: with_mpp(10.1, power=40),
    lambda: with_mpp(0.25, 0.27, power=40),
    lambda: with_mpp(-0.25, power=40),
    lambda: with_mpp(0.0, power=40),
]


@pytest.mark.parametrize("make", BAD)
def test_missing_absurd_and_anisotropic_are_errors_with_a_way_out(
    make: Callable[[], SlideMetadata],
) -> None:
    with pytest.raises(MppError, match="slide ward 7/b") as caught:
        choose_mpp("ward 7/b", make())
    assert "--slide-mpp" in str(caught.value)
    assert "--missing-mpp" in str(caught.value)


@pytest.mark.parametrize("make", BAD)
def test_they_can_be_skipped_or_taken_from_the_objective(make: Callable[[], SlideMetadata]) -> None:
    skipped = choose_mpp("s", make(), missing="skip")
    assert skipped.mpp is None
    assert skipped.warning
    taken = choose_mpp("s", make(), missing="from-objective")
    assert (taken.mpp, taken.source) == (0.25, "objective")
    assert "objective power 40" in (taken.warning or "")


@pytest.mark.parametrize("power", [None, 0.0, 1000.0])
def test_an_objective_that_says_nothing_is_no_way_out(power: float | None) -> None:
    with pytest.raises(MppError, match="no usable objective power"):
        choose_mpp("s", with_mpp(None, power=power), missing="from-objective")


@pytest.mark.parametrize("stated", [0.0, 0.04, 11.0, -1.0, float("nan")])
def test_a_stated_value_must_be_possible(stated: float) -> None:
    with pytest.raises(MppError, match=r"0\.05-10"):
        choose_mpp("s", with_mpp(0.25), stated=stated)


@pytest.mark.parametrize(
    ("mpp", "power", "warned"),
    [
        (0.25, 40, False),
        (0.2208, 40, False),
        (0.5, 20, False),
        (0.46, 20, False),
        (0.5, 40, True),
        (0.25, 20, True),
    ],
)
def test_disagreement_of_mpp_and_objective_is_warned_about(
    mpp: float, power: float, warned: bool
) -> None:
    choice = choose_mpp("s", with_mpp(mpp, power=float(power)))
    assert choice.mpp == mpp
    assert bool(choice.warning) is warned
