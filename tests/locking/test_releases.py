"""From ``uname -r`` to a model."""

from __future__ import annotations

import pytest

from mmreplay.errors import UserError
from mmreplay.locking import resolve_kernel


@pytest.mark.parametrize(
    ("release", "model"),
    [
        ("6.1.0-18-amd64", "linux-6.1"),
        ("5.10.0-30-amd64", "linux-5.10"),
        ("5.14.21", "linux-5.10"),
        ("5.19.17", "linux-5.15"),
        ("6.3.13", "linux-6.2"),
        ("6.8.12-300.x86_64", "linux-6.7"),
        ("6.16.3", "linux-6.15"),
        ("6.17.13", "linux-6.17"),
        ("6.18", "linux-6.18"),
        ("6.18.44", "linux-6.18"),
        ("v7.3-rc2", "linux-7.3"),
        ("7.2.1", "linux-7.0"),
        ("6.18.0-rc1+", "linux-6.18"),
        ("linux-6.16", "linux-6.15"),
    ],
)
def test_the_newest_model_not_newer_is_taken_and_said(release: str, model: str) -> None:
    found, note = resolve_kernel(release)
    assert found.name == model
    assert model in note
    assert release in note
    assert "warning" not in note


def test_a_models_own_name_needs_no_note() -> None:
    found, note = resolve_kernel("linux-6.1")
    assert (found.name, note) == ("linux-6.1", "")


@pytest.mark.parametrize(
    "release",
    [
        "6.12.0-55.el10.x86_64",
        "6.1.75-android14-11-g1",
        "6.12.0-101.33.4.3.el9uek.x86_64",
        "6.8.0-1021-aws",
        "6.8.0-1021-azure",
        "6.8.0-1021-gke",
    ],
)
def test_vendor_kernels_carry_a_warning(release: str) -> None:
    assert "does not tell" in resolve_kernel(release)[1]


def test_the_patch_level_does_not_count() -> None:
    assert resolve_kernel("6.18.999")[0].name == "linux-6.18"


@pytest.mark.parametrize("text", ["", "six", "6", "6.", "..", "-1.2", "6,18"])
def test_what_is_no_release_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"unknown kernel or model .*one of linux-5\.10"):
        resolve_kernel(text)


def test_a_misspelt_model_gets_the_closest() -> None:
    with pytest.raises(UserError, match=r'did you mean "linux-6\.1'):
        resolve_kernel("linx-6.18")


def test_older_than_all_models_is_refused() -> None:
    with pytest.raises(UserError, match=r"older than every model \(the first is 5\.10\)"):
        resolve_kernel("5.4.0-190-generic")
