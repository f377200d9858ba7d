"""The catalogue: every net is valid and equals its written text; the shipped files are what it writes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from zoo_counter import count

from ilgnet_repro.caffe.prototxt import format_message, parse_net
from ilgnet_repro.caffe.upgrade import upgrade_net
from ilgnet_repro.errors import IlgnetError
from ilgnet_repro.zoo import catalogue

SHIPPED = Path(__file__).parents[2] / "prototxt"
TEXTS = catalogue.texts()


@pytest.mark.parametrize("path", TEXTS)
def test_shipped_file_is_what_its_builder_writes(path):
    assert (SHIPPED / path).read_bytes() == TEXTS[path].encode(), f"run {catalogue.COMMAND}"


@pytest.mark.parametrize("path", TEXTS)
def test_first_line_names_builder_and_command(path):
    first = TEXTS[path].splitlines()[0]
    assert first.startswith("# Written by ilgnet_repro.")
    assert first.endswith(catalogue.COMMAND)


@pytest.mark.parametrize("name", catalogue.builders())
def test_text_reads_back_as_the_same_net(name):
    net = catalogue.build(name)
    assert parse_net(format_message(net)) == net


@pytest.mark.parametrize("name", catalogue.builders())
def test_every_net_is_modern_and_valid(name):
    net = catalogue.build(name)
    assert upgrade_net(net) == net
    for phase in ("TRAIN", "TEST"):
        count(net, phase)  # raises if a bottom is missing or shapes do not fit
        index = {"TRAIN": 0, "TEST": 1}[phase]
        names = Counter(
            layer.name for layer in net.layer if not layer.include or layer.include[0].phase == index
        )
        assert max(names.values()) == 1


def test_builders_give_a_new_net_each_time():
    first = catalogue.build("googlenet")
    first.layer.pop()
    assert len(catalogue.build("googlenet").layer) == len(first.layer) + 1


@pytest.mark.parametrize("name", ["googlenet_v4", "", "GoogLeNet"])
def test_unknown_name_is_refused_in_one_line(name):
    with pytest.raises(IlgnetError) as error:
        catalogue.build(name)
    message = str(error.value)
    assert message.startswith(f"{name!r} is not in the zoo; choose one of ")
    assert all(known in message for known in catalogue.builders())
    assert "\n" not in message


def test_write_makes_the_same_files_anywhere(tmp_path, capsys):
    assert catalogue.main(["--write", "--out", str(tmp_path / "new")]) == 0
    written = {
        p.relative_to(tmp_path / "new").as_posix(): p.read_text() for p in tmp_path.rglob("*.prototxt")
    }
    assert written == TEXTS
    assert len(capsys.readouterr().out.splitlines()) == len(TEXTS)


def test_without_write_the_names_are_listed(capsys):
    assert catalogue.main([]) == 0
    assert capsys.readouterr().out.split() == list(catalogue.builders())


def test_a_folder_that_cannot_be_created_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert catalogue.main(["--write", "--out", str(tmp_path / "file")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "cannot be created" in error
