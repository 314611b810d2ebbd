"""From ``uname -r`` to a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmreplay.errors import UserError
from mmreplay.locking import resolve_kernel
from mmreplay.locking.loader import model_names
from mmreplay.locking.vendors import read_vendors, vendor_of, vendors


@pytest.mark.parametrize(
    ("release", "model"),
    [
        ("6.1.0-18-amd64", "linux-6.1"),
        ("5.10.0-30-amd64", "linux-5.10"),
        ("5.13.19", "linux-5.10"),
        ("5.14.21", "linux-5.15"),
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


@pytest.mark.parametrize("release", ["linux-6.81", "6.20.1", "5.99", "9.9", "linux-99.1"])
def test_a_kernel_that_does_not_exist_is_refused(release: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve_kernel(release)
    assert release in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("release", "meant"),
    [("linux-6.81", "linux-6.18"), ("6.91.2", "linux-6.19"), ("6.99", "linux-6.19")],
)
def test_a_kernel_that_does_not_exist_gets_the_one_that_was_meant(release: str, meant: str) -> None:
    with pytest.raises(UserError, match=f'did you mean "{meant}"'):
        resolve_kernel(release)


@pytest.mark.parametrize("release", ["9.9", "linux-99.1", "2.81"])
def test_a_kernel_that_is_like_none_gets_no_suggestion(release: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve_kernel(release)
    assert "did you mean" not in str(caught.value)


def test_a_kernel_newer_than_every_model_is_taken_with_a_warning() -> None:
    found, note = resolve_kernel("8.0.1")
    assert found.name == "linux-7.3"
    assert "older" in note


def test_a_models_own_name_needs_no_note() -> None:
    found, note = resolve_kernel("linux-6.1")
    assert (found.name, note) == ("linux-6.1", "")


#: release -> (model, part of the vendor's name, whether the number tells)
VENDORS = {
    "4.18.0-553.el8_10.x86_64": ("linux-5.10", "RHEL 8", False),
    "5.14.0-427.13.1.el9_4.x86_64": ("linux-5.15", "RHEL 9", False),
    "6.12.0-55.el10.x86_64": ("linux-6.12", "RHEL 10", False),
    "5.10.198-android12-9-00019": ("spf-lespinasse", "Android", False),
    "5.15.123-android13-8": ("spf-lespinasse", "Android", False),
    "6.1.75-android14-11-g1": ("linux-6.1", "Android", False),
    "6.6.30-android15-8": ("linux-6.6", "Android", False),
    "5.4.17-2136.330.7.1.el8uek.x86_64": ("linux-5.10", "UEK", False),
    "5.15.0-206.153.7.el9uek.x86_64": ("linux-5.15", "UEK", False),
    "6.12.0-101.33.4.3.el9uek.x86_64": ("linux-6.12", "UEK", False),
    "6.8.0-1021-aws": ("linux-6.7", "cloud", False),
    "6.8.0-1021-azure": ("linux-6.7", "cloud", False),
    "6.8.0-1021-gke": ("linux-6.7", "cloud", False),
    "6.1.58+": ("linux-6.1", "Container-Optimized", False),
    "6.1.119-129.201.amzn2023.x86_64": ("linux-6.1", "Amazon", False),
    "6.6.51.1-5.azl3": ("linux-6.6", "Azure Linux", False),
    "6.4.0-150600.23.25-default": ("linux-6.4", "SUSE", False),
    "5.10.0-136.12.0.86.oe2203sp1.x86_64": ("linux-5.10", "openEuler", False),
    "6.1.0-56-amd64": ("linux-6.1", "Debian", True),
    "6.12.117+deb12-amd64": ("linux-6.12", "Debian", True),
    "5.15.0-204-generic": ("linux-5.15", "Ubuntu", True),
    "6.8.7-1-default": ("linux-6.7", "Tumbleweed", True),
    "6.14.5-300.fc42.x86_64": ("linux-6.14", "Fedora", True),
    "6.8.12-4-pve": ("linux-6.7", "Proxmox", True),
    "5.15.153.1-microsoft-standard-WSL2": ("linux-5.15", "WSL", True),
}


@pytest.mark.parametrize("release", VENDORS)
def test_vendor_kernels_are_known_by_their_looks(release: str) -> None:
    model, name, tells = VENDORS[release]
    found, note = resolve_kernel(release)
    vendor = vendor_of(release)
    assert found.name == model
    assert vendor is not None
    assert name in vendor.name
    assert vendor.tells is tells
    assert ("does not tell" in note) is not tells
    assert tells or ("mmreplay locks verify" in note and vendor.known in note)


@pytest.mark.parametrize("release", ["6.18.44", "6.18.44-fc-v595", "7.3.0-rc2", "6.1.0"])
def test_upstream_kernels_have_no_vendor(release: str) -> None:
    assert vendor_of(release) is None


def test_the_table_names_models_that_exist_and_its_sources() -> None:
    for vendor in vendors():
        assert {vendor.floor, *vendor.models.values()} - {""} <= set(model_names())
        assert vendor.sources


def test_a_table_with_a_mistake_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vendors.toml"
    for text, message in (
        ('[[vendor]]\nname = "x"\nmach = "y"\n', 'unknown key "mach" (did you mean "match"?)'),
        ('[[vendor]]\nname = "x"\nmatch = "("\ntells = true\nsources = []\n', "expression"),
        ('[[vendor]]\nname = "x"\nmatch = "y"\nsources = []\n', 'missing key "tells"'),
    ):
        path.write_text(text)
        with pytest.raises(UserError) as error:
            read_vendors(path)
        assert message in error.value.line()


def test_the_patch_level_does_not_count() -> None:
    assert resolve_kernel("6.18.999")[0].name == "linux-6.18"


@pytest.mark.parametrize("text", ["", "six", "6", "6.", "..", "-1.2", "6,18"])
def test_what_is_no_release_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"unknown kernel or model .*; give .*models list"):
        resolve_kernel(text)


def test_a_misspelt_model_gets_the_closest() -> None:
    with pytest.raises(UserError, match=r'did you mean "linux-6\.1'):
        resolve_kernel("linx-6.18")


@pytest.mark.parametrize(
    ("text", "meant"),
    [("linux-6.l", "linux-6.1"), ("linux-6.I", "linux-6.1"), ("linux-7.O", "linux-7.0")],
)
def test_letters_that_look_like_digits_are_taken_for_them(text: str, meant: str) -> None:
    with pytest.raises(UserError, match=rf'did you mean "{meant}"'):
        resolve_kernel(text)


def test_older_than_all_models_is_refused() -> None:
    with pytest.raises(UserError, match=r"older than every model \(the first is 5\.10\)"):
        resolve_kernel("5.4.0-190-generic")
