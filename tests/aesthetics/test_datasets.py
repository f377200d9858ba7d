"""AVA, TAD66K, AADB, EVA and FLICKR-AES by their published layouts: values, counts, splits, shared images, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ilgnet_repro.aesthetics.datasets import DATASETS, locate_images, read_dataset, with_validation
from ilgnet_repro.aesthetics.datasets.splits import contamination, draw_split, image_key
from ilgnet_repro.aesthetics.models.attributes import ATTRIBUTES
from ilgnet_repro.aesthetics.synthetic_scores import draw_scored, write_scored_set
from ilgnet_repro.errors import DataError

AVA_HEADER = "image_id," + ",".join(f"score{column}" for column in range(2, 12)) + ",tag1,tag2,tag3"
EVA_NAMES = (
    "image_id",
    "user_id",
    "score",
    "difficulty",
    "visual",
    "composition",
    "quality",
    "semantic",
    "vote_time",
)
EVA_HEADER = "=".join(f'"{name}"' for name in (*EVA_NAMES, *"1234"))
AVA_TXT = (
    "1 953958 0 1 5 17 38 36 15 6 5 1 1 22 1396\n"
    "2 953 1 1 0 0 0 0 0 0 0 2 0 0 1\n"
    "3 71 0 0 0 0 4 4 0 0 0 0 0 0 2\n"
    "4 9 0 0 0 0 0 8 0 0 0 0 0 0 2\n"
)


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def aadb_files(rows: dict[str, tuple[str, str]], spelled: str = "BalacingElements") -> dict[str, str]:
    """Lists of AADB: two images per split; every attribute of the first is -0.5, of the second 0.25."""
    files = {}
    stems = {"train": "Train", "val": "Validation", "test": "TestNew"}
    for split, (first, second) in rows.items():
        stem = f"imgListFiles_label/imgList{stems[split]}Regression"
        files[f"{stem}_score.txt"] = f"{first} 0.4\n{second} 0.75\n"
        for name in ATTRIBUTES["aadb"]:
            name = spelled if name == "BalancingElement" else name
            files[f"{stem}_{name}.txt"] = f"{second} 0.25\n{first} -0.5\n"
    return files


AADB_ROWS = {"train": ("a.jpg", "b.jpg"), "val": ("c.jpg", "d.jpg"), "test": ("e.jpg", "f.jpg")}
AVA_ROW = "{},0,1,5,17,38,36,15,6,5,1,1,22,1396"
TAD_HEAD = "image,score\n"
FLICKR = (
    " farm9_8432_1001_0a_b.jpg 0.25\n"
    " farm9_8432_1002_0b_b.jpg 0.5\n"
    " farm9_8432_1003_0c_b.jpg 1\n"
    " farm9_8432_1004_0d_b.jpg 0\n"
)
RATINGS = (
    " worker, imagePair, score\nA1,farm9_8432_1001_0a_b.jpg,3\nA2,farm9_8432_1002_0b_b.jpg,4\n"
    "A1,farm9_8432_1003_0c_b.jpg,1\nA3,farm9_8432_1004_0d_b.jpg,5\n"
)
# Data, files, and the images by split.
ACCEPTED = {
    "AVA, tables": (
        "ava",
        {
            "train.csv": f"{AVA_HEADER}\n{AVA_ROW.format(953958)}\n{AVA_ROW.format(953959)}\n",
            "test.csv": f"{AVA_HEADER}\r\n{AVA_ROW.format(7)}\r\n{AVA_ROW.format(8)}\r\n",
        },
        {"train": ("953958", "953959"), "test": ("7", "8")},
    ),
    "AVA.txt, its own lists": (
        "ava",
        {
            "AVA.txt": AVA_TXT,
            "aesthetics_image_lists/generic_ls_train.jpgl": "953958\n953\n",
            "aesthetics_image_lists/generic_test.jpgl": "9\n71\n",
        },
        {"train": ("953958", "953"), "test": ("9", "71")},
    ),
    "AVA.txt, ILGNet's lists": (
        "ava",
        {"AVA.txt": AVA_TXT, "train.txt": "953958.jpg 1\n953.jpg 0\n", "val.txt": "9.jpg 1\n71.jpg 0\n"},
        {"train": ("953958", "953"), "test": ("9", "71")},
    ),
    "TAD66K, a table": (
        "tad66k",
        {"train.csv": f"{TAD_HEAD}a.jpg,1\nb.jpg,10\n", "test.csv": f"{TAD_HEAD}c.jpg,5.5\nd.jpg,2\n"},
        {"train": ("a.jpg", "b.jpg"), "test": ("c.jpg", "d.jpg")},
    ),
    "TAD66K, a file per theme": (
        "tad66k",
        {
            "animal_train.csv": f"{TAD_HEAD}a.jpg,1\n", "street_train.csv": "score,image\n10,b.jpg\n",
            "animal_test.csv": f"{TAD_HEAD}c.jpg,5.5\nd.jpg,2\n",
        },
        {"train": ("a.jpg", "b.jpg"), "test": ("c.jpg", "d.jpg")},
    ),
    "TAD66K, folders of themes": (
        "tad66k",
        {
            "train/animal.csv": f"{TAD_HEAD}a.jpg,1\n", "train/street.csv": f"{TAD_HEAD}b.jpg,10\n",
            "test/animal.csv": f"{TAD_HEAD}c.jpg,5.5\nd.jpg,2\n",
        },
        {"train": ("a.jpg", "b.jpg"), "test": ("c.jpg", "d.jpg")},
    ),
    "AADB": ("aadb", aadb_files(AADB_ROWS), AADB_ROWS),
    "AADB, another spelling": ("aadb", aadb_files(AADB_ROWS, "BalancingElement"), AADB_ROWS),
    "FLICKR-AES, by worker": (
        "flickr-aes",
        {
            "FLICKR-AES_image_score.txt": FLICKR, "FLICKR-AES_image_labeled_by_each_worker.csv": RATINGS,
            "test_workers.txt": "A1\n",
        },
        {
            "train": ("farm9_8432_1002_0b_b.jpg", "farm9_8432_1004_0d_b.jpg"),
            "test": ("farm9_8432_1001_0a_b.jpg", "farm9_8432_1003_0c_b.jpg"),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "files", "images"), ACCEPTED.values(), ids=ACCEPTED)
def test_splits_by_the_published_layout(tmp_path, data, files, images) -> None:
    found = read_dataset(data, write(tmp_path, files))
    assert {split: rows.images for split, rows in found.splits.items()} == images


def test_votes_become_a_distribution_and_its_mean(tmp_path) -> None:
    _, files, _ = ACCEPTED["AVA.txt, its own lists"]
    rows = read_dataset("ava", write(tmp_path, files)).split("train")
    votes = np.array([0, 1, 5, 17, 38, 36, 15, 6, 5, 1])
    assert rows.targets["distribution"][0] == pytest.approx(votes / 124)
    assert rows.targets["score"] == pytest.approx(
        [sum((k + 1) * n for k, n in enumerate(votes)) / 124, 23 / 4]
    )
    assert rows.targets["distribution"].dtype == np.float32


def test_themes_are_the_names_of_the_files(tmp_path) -> None:
    rows = read_dataset("tad66k", write(tmp_path, ACCEPTED["TAD66K, a file per theme"][1])).split("train")
    assert rows.themes == ("animal", "street")
    assert rows.targets["score"].tolist() == [1, 10]
    assert rows.take(np.array([1])).themes == ("street",)


def test_attributes_belong_to_their_image_whatever_the_order_of_the_lists(tmp_path) -> None:
    rows = read_dataset("aadb", write(tmp_path, aadb_files(AADB_ROWS))).split("test")
    assert rows.targets["score"] == pytest.approx([0.4, 0.75])
    for name in ATTRIBUTES["aadb"]:
        assert rows.targets[name].tolist() == [-0.5, 0.25], name


def eva_files(
    count: int = 40, first: str = '"71"="E1"="4"="2"="1"="3"="4"="2"="9"="0"="0"="0"="1"'
) -> dict[str, str]:
    rows = [first, '"71"="E2"="9"="2"=""="4"="4"="1"="9"="0"="0"="0"="1"']
    rows += [f'"{100 + number}"="E1"="5"="2"="1"="1"="1"="1"="9"="0"="0"="0"="1"' for number in range(count)]
    return {"data/votes_filtered.csv": "\n".join([EVA_HEADER, *rows])}


def test_votes_of_eva_are_averaged(tmp_path) -> None:
    found = read_dataset("eva", write(tmp_path, eva_files()))
    split, number = next(
        (split, rows.images.index("71")) for split, rows in found.splits.items() if "71" in rows.images
    )
    targets = {name: float(values[number]) for name, values in found.split(split).targets.items()}
    assert targets == {"score": 6.5, "visual": 1, "composition": 3.5, "quality": 4, "semantic": 1.5}
    assert "eva: 1 votes do not state every attribute" in found.notes
    assert sum(map(len, found.splits.values())) == 41
    assert set(found.splits) == {"train", "test"}


# ---------------------------------------------------------------------- counts, splits, shared images


def test_counts_that_differ_from_the_published_ones_are_noted(tmp_path) -> None:
    found = read_dataset(
        "aadb",
        write(tmp_path, {**aadb_files(AADB_ROWS), "imgListFiles_label/imgListTestRegression_score.txt": ""}),
    )
    assert found.notes == (
        "aadb: the lists imgListTestRegression_* are of an earlier test set and are not read",
        "aadb: train has 2 images, as published 8,458",
        "aadb: val has 2 images, as published 500",
        "aadb: test has 2 images, as published 1,000",
    )
    tad = read_dataset("tad66k", write(tmp_path / "tad", ACCEPTED["TAD66K, a file per theme"][1]))
    assert tad.notes[:2] == (
        "tad66k: 2 themes, as published 47",
        "tad66k: theme street has a table of train, and none of test",
    )
    assert read_dataset("ava", write(tmp_path / "ava", ACCEPTED["AVA, tables"][1])).notes == ()


def test_without_its_workers_the_split_of_flickr_is_ours_and_says_so(tmp_path) -> None:
    scores = "".join(f"farm1_2_{number}_0a_b.jpg 0.5\n" for number in range(60))
    found = read_dataset("flickr-aes", write(tmp_path, {"FLICKR-AES_image_score.txt": scores}))
    assert sum(map(len, found.splits.values())) == 60
    assert found.notes[1] == (
        "flickr-aes: without test_workers.txt the split is not the published one by worker, so figures do not compare"
    )


def test_validation_is_drawn_from_train_and_each_image_keeps_its_place(tmp_path) -> None:
    rows = "".join(f"{number}.jpg,{1 + number % 9}\n" for number in range(200))
    files = {"train.csv": TAD_HEAD + rows, "test.csv": f"{TAD_HEAD}x.jpg,2\ny.jpg,3\n"}
    found = with_validation(read_dataset("tad66k", write(tmp_path, files)), 0.2)
    train, val = found.split("train"), found.split("val")
    assert len(train) + len(val) == 200 and not set(train.images) & set(val.images)
    assert len(val) == 40
    assert found.split("test").images == ("x.jpg", "y.jpg")
    for part in (train, val):  # each row's own score
        assert part.targets["score"].tolist() == [1 + int(name[:-4]) % 9 for name in part.images]
    write(tmp_path, {"train.csv": TAD_HEAD + "".join(reversed(rows.splitlines(keepends=True)))})
    assert set(with_validation(read_dataset("tad66k", tmp_path), 0.2).split("val").images) == set(val.images)
    assert list(found.splits) == ["train", "val", "test"]


def test_a_validation_list_is_used_as_it_is(tmp_path) -> None:
    found = read_dataset("aadb", write(tmp_path, aadb_files(AADB_ROWS)))
    assert with_validation(found) is found


def test_an_image_of_two_splits_is_noted(tmp_path) -> None:
    rows = {**AADB_ROWS, "test": ("farm3_4_77_aa_b.jpg", "a.jpg"), "val": ("farm9_8_77_bb_z.jpg", "d.jpg")}
    notes = read_dataset("aadb", write(tmp_path, aadb_files(rows))).notes
    assert "aadb: 1 images of test are in train too; figures on them say nothing" in notes
    assert (
        "aadb: 1 images of test are in val too; figures on them say nothing" in notes
    )  # Flickr's photograph 77


KEYS = {
    "AVA": ("ava", "0953.jpg", "ava:953"),
    "EVA": ("eva", "953", "ava:953"),
    "AADB": ("aadb", "farm1_255_19452343093_912e08a3f6_b.jpg", "flickr:19452343093"),
    "AADB, with its score": ("aadb", "0.500_farm1_487_20167490236_ae920475e2_b.jpg", "flickr:20167490236"),
    "AVA, of no number that Python reads": ("ava", f"00{'9' * 5000}.jpg", f"ava:{'9' * 5000}"),
    "AVA, zero": ("ava", "00.jpg", "ava:0"),
    "TAD66K": ("tad66k", "953.jpg", "tad66k:953.jpg"),
    "features": ("features", "00000012_a/953.jpg", "features:a/953.jpg"),
}


@pytest.mark.parametrize(("data", "image", "key"), KEYS.values(), ids=KEYS)
def test_images_are_known_by_their_ids(data, image, key) -> None:
    assert image_key(data, image) == key


def test_a_test_set_that_was_trained_on_is_warned_of(tmp_path) -> None:
    eva = read_dataset("eva", write(tmp_path, eva_files()))
    tested = eva.split("test").images
    trained = [("ava", f"{tested[0]}.jpg"), ("ava", "5"), ("tad66k", f"{tested[1]}")]
    assert contamination(trained, eva, "test") == (
        f"1 of the {len(tested)} images of eva's test were trained on: the figures are not those of unseen images"
    )
    assert contamination(trained[1:], eva, "test") == ""


# ---------------------------------------------------------------------- images


def test_images_are_found_where_the_release_has_them(tmp_path) -> None:
    found = read_dataset("aadb", write(tmp_path, aadb_files(AADB_ROWS)))
    images = write(
        tmp_path / "images",
        dict.fromkeys(("a.jpg", "datasetImages_warp256/b.jpg", "AADB_newtest/0.400_e.jpg", "f.jpg"), "x"),
    )
    assert locate_images(found, "train", images) == [
        images / "a.jpg",
        images / "datasetImages_warp256" / "b.jpg",
    ]
    assert locate_images(found, "test", images) == [images / "AADB_newtest" / "0.400_e.jpg", images / "f.jpg"]
    with pytest.raises(DataError) as caught:
        locate_images(found, "val", images)
    assert str(caught.value) == (
        f"{images}: 2 of 2 images of aadb's val are missing, the first 'c.jpg' (looked for c.jpg, "
        "datasetImages_warp256/c.jpg, datasetImages_originalSize/c.jpg); give the folder of the images"
    )


@pytest.mark.parametrize("data", ["ava", "tad66k", "aadb", "eva", "flickr-aes"])
def test_generated_sets_have_the_published_layout(tmp_path, data) -> None:
    folder = write_scored_set(data, tmp_path / "set", {"train": 30, "val": 4, "test": 20}, side=16, seed=1)
    found = with_validation(read_dataset(data, folder))
    assert sum(map(len, found.splits.values())) == 54
    for split in found.splits:
        locate_images(found, split, folder / "images")
    if data == "ava":
        wanted = draw_scored(30, 16, 3).score
        assert found.split("train").targets["score"] == pytest.approx(1 + 9 * wanted, abs=0.35)
    again = write_scored_set(data, tmp_path / "again", {"train": 30, "val": 4, "test": 20}, side=16, seed=1)
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert all((again / name).read_bytes() == (folder / name).read_bytes() for name in names)


# ---------------------------------------------------------------------- features


def write_npz(folder: Path, **arrays: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, held in arrays.items():
        np.savez(folder / f"{split}.npz", **held)
    return folder


def features(count: int = 4, size: int = 3, **changed: np.ndarray) -> dict[str, np.ndarray]:
    held = {
        "fc7": np.arange(count * size, dtype=np.float32).reshape(count, size, 1, 1),
        "label": np.arange(count) % 2,
        "key": np.array([f"{number:08d}_{number}.jpg" for number in range(count)]),
    }
    return {name: value for name, value in {**held, **changed}.items() if value is not None}


def test_features_and_labels(tmp_path) -> None:
    found = read_dataset("features", write_npz(tmp_path, train=features(), test=features(6, key=None)))
    rows = found.split("test")
    assert rows.inputs.tolist() == np.arange(18).reshape(6, 3).tolist()
    assert rows.targets["label"].tolist() == [0, 1, 0, 1, 0, 1]
    assert rows.images[5] == "test:5" and found.split("train").images[3] == "00000003_3.jpg"


FEATURES_REFUSED = {
    "no test": ({"train": features()}, "{}: has no test.npz; give the folder of the lists"),
    "another size": (
        {"train": features(), "test": features(size=2)}, "{}/test.npz: 2 features per row, train.npz has 3",
    ),
    "two blobs": (
        {"train": features(fc6=np.ones((4, 2), np.float32)), "test": features()},
        "{}/train.npz: has 2 blobs (fc7, fc6); give a file of one",
    ),
    "no labels": (
        {"train": features(label=None), "test": features()},
        "{}/train.npz: has no labels; write it with `ilgnet features` from a list or database with labels",
    ),
    "other rows": (
        {"train": features(label=np.zeros(3, int)), "test": features()},
        "{}/train.npz: fc7 has shape [4, 3, 1, 1] and the labels [3]; give N x F features and N labels",
    ),
    "not finite": (
        {"train": features(), "test": features(fc7=np.full((4, 3), np.nan, np.float32))},
        "{}/test.npz: fc7 holds values that are not finite numbers; compute it again",
    ),
    "an unknown class": (
        {"train": features(), "test": features(label=np.array([0, 1, 2, 0]))},
        "{}/test.npz: label 2, and the training rows have the labels 0 to 1",
    ),
    "a negative label": (
        {"train": features(label=np.array([0, 1, -1, 0])), "test": features()},
        "{}/train.npz: labels must be integers from 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("arrays", "message"), FEATURES_REFUSED.values(), ids=FEATURES_REFUSED)
def test_refused_features(tmp_path, arrays, message) -> None:
    with pytest.raises(DataError) as caught:
        read_dataset("features", write_npz(tmp_path, **arrays))
    assert str(caught.value) == message.format(tmp_path)


# ---------------------------------------------------------------------- refusals: each a twin of a file above


def changed(name: str, files: dict[str, str | None]) -> tuple[str, dict[str, str]]:
    data, given, _ = ACCEPTED[name]
    return data, {file: text for file, text in {**given, **files}.items() if text is not None}


AVA_TRAIN = f"{AVA_HEADER}\n{AVA_ROW.format(1)}\n"
SCORE_LIST = "imgListFiles_label/imgListTrainRegression_score.txt"
LIGHT = "imgListFiles_label/imgListTestNewRegression_Light.txt"
REFUSED = {
    "AVA: no test": (
        changed("AVA, tables", {"test.csv": None}), "{}: has no test.csv; give the folder of the lists",
    ),
    "AVA: no lists": (
        changed("AVA.txt, ILGNet's lists", {"train.txt": None}),
        "{}: has AVA.txt and no lists of a split; add one of: aesthetics_image_lists/generic_ls_train.jpgl and "
        "aesthetics_image_lists/generic_test.jpgl; train.txt and test.txt; train.txt and val.txt",
    ),
    "AVA: twice": (
        changed("AVA, tables", {"train.csv": AVA_TRAIN + AVA_ROW.format("01")}),
        "{}/train.csv:3: image '1' is already at {}/train.csv:2; remove one of them",
    ),
    "AVA: no votes": (
        changed("AVA, tables", {"train.csv": f"{AVA_TRAIN}2{',0' * 13}\n"}),
        "{}/train.csv:3: image 2 has no votes, so no distribution; remove the row",
    ),
    "AVA: a column short": (
        changed("AVA, tables", {"train.csv": f"{AVA_TRAIN}2{',1' * 12}\n"}),
        "{}/train.csv:3: 13 columns, the header has 14",
    ),
    "AVA: no column": (
        changed("AVA, tables", {"train.csv": AVA_TRAIN.replace("score11", "score12")}),
        "{}/train.csv:1: column 'score11' is missing; a table of AVA's votes has image_id, score2, score3, score4, "
        "score5, score6, score7, score8, score9, score10, score11",
    ),
    "AVA: no count": (
        changed("AVA, tables", {"train.csv": f"{AVA_TRAIN}2,x{',1' * 12}\n"}),
        "{}/train.csv:3: a count of votes is 'x'; give a number from 0 to 1e+06",
    ),
    "AVA: no id": (
        changed("AVA, tables", {"train.csv": f"{AVA_TRAIN}a.jpg{',1' * 13}\n"}),
        "{}/train.csv:3: 'a.jpg' is not one of AVA's image ids; write 953958 or 953958.jpg",
    ),
    "AVA: an unknown id": (
        changed("AVA.txt, ILGNet's lists", {"val.txt": "9.jpg 1\n72.jpg 0\n"}),
        "{}/val.txt:2: image 72 is not in {}/AVA.txt; give lists of that file's images",
    ),
    "TAD66K: no test": (
        changed("TAD66K, folders of themes", {"test/animal.csv": None}),
        "{}: has no test.csv, no THEME_test.csv and no test/THEME.csv; give the folder of the tables of TAD66K",
    ),
    "TAD66K: a score above 10": (
        changed("TAD66K, a table", {"train.csv": f"{TAD_HEAD}a.jpg,1\nb.jpg,10.5\n"}),
        "{}/train.csv:3: the score is '10.5'; give a number from 1 to 10",
    ),
    "TAD66K: not a number": (
        changed("TAD66K, a table", {"train.csv": f"{TAD_HEAD}a.jpg,nan\nb.jpg,10\n"}),
        "{}/train.csv:2: the score is 'nan'; give a number from 1 to 10",
    ),
    "TAD66K: twice, in two themes": (
        changed("TAD66K, a file per theme", {"street_train.csv": f"{TAD_HEAD}a.jpg,10\n"}),
        "{}/street_train.csv:2: image 'a.jpg' is already at {}/animal_train.csv:2; remove one of them",
    ),
    "TAD66K: out of the folder": (
        changed("TAD66K, a table", {"train.csv": f"{TAD_HEAD}../a.jpg,1\nb.jpg,10\n"}),
        "{}/train.csv:2: '../a.jpg' is not the name of an image below a folder",
    ),
    "TAD66K: an empty table": (
        changed("TAD66K, a file per theme", {"street_train.csv": ""}),
        "{}/street_train.csv: is empty; give a table of TAD66K, with the columns image, score",
    ),
    "TAD66K: one image": (
        changed("TAD66K, a table", {"train.csv": f"{TAD_HEAD}a.jpg,1\n"}),
        "tad66k: split train has 1 images; at least 2 are needed",
    ),
    "TAD66K: an open quote": (
        changed("TAD66K, a table", {"train.csv": f'{TAD_HEAD}"a.jpg,1\n'}),
        "{}/train.csv:2: is not a row of a table of TAD66K (unexpected end of data)",
    ),
    "TAD66K: a long line": (
        changed("TAD66K, a table", {"train.csv": TAD_HEAD + "a" * 5000}),
        "{}/train.csv:2: longer than 4096 bytes; give a table of TAD66K",
    ),
    "AADB: no list": (
        changed("AADB", {LIGHT: None}),
        "{}/imgListFiles_label: has no imgListTestNewRegression_Light.txt; give the folder of the lists",
    ),
    "AADB: another image": (
        changed("AADB", {LIGHT: "e.jpg 0.5\ng.jpg 0.5\n"}),
        "{}/" + LIGHT + ": image 'f.jpg' is in one of this list and imgListTestNewRegression_score.txt only; they must "
        "list the same images",
    ),
    "AADB: an image more": (
        changed("AADB", {LIGHT: "e.jpg 0.5\nf.jpg 0.5\ng.jpg 0.5\n"}),
        "{}/" + LIGHT + ": image 'g.jpg' is in one of this list and imgListTestNewRegression_score.txt only; they must "
        "list the same images",
    ),
    "AADB: below the range": (
        changed("AADB", {SCORE_LIST: "a.jpg -0.1\nb.jpg 1\n"}),
        "{}/" + SCORE_LIST + ":1: the value of score is '-0.1'; give a number from 0 to 1",
    ),
    "AADB: no value": (
        changed("AADB", {SCORE_LIST: "a.jpg\nb.jpg 1\n"}),
        "{}/" + SCORE_LIST + ":1: 'a.jpg' is not a row; write `image value`",
    ),
    "AADB: twice": (
        changed("AADB", {SCORE_LIST: "a.jpg 0\nb.jpg 1\na.jpg 1\n"}),
        "{}/" + SCORE_LIST + ":3: image 'a.jpg' is already at {}/" + SCORE_LIST + ":1; remove one of them",
    ),
    "EVA: a vote of 5": (
        ("eva", eva_files(first='"71"="E1"="4"="2"="5"="3"="4"="2"="9"="0"="0"="0"="1"')),
        "{}/data/votes_filtered.csv:2: the vote on visual is '5'; give a number from 1 to 4",
    ),
    "EVA: no score": (
        ("eva", eva_files(first='"71"="E1"=""="2"="1"="3"="4"="2"="9"="0"="0"="0"="1"')),
        "{}/data/votes_filtered.csv:2: the vote on score is ''; give a number from 0 to 10",
    ),
    "EVA: commas": (
        ("eva", {"votes_filtered.csv": EVA_HEADER.replace('"', "").replace("=", ",")}),
        "{}/votes_filtered.csv:1: column 'image_id' is missing; EVA's votes_filtered.csv has image_id, score, visual, "
        "composition, quality, semantic",
    ),
    "EVA: no votes": (
        ("eva", {"votes_filtered.csv": EVA_HEADER}),
        "{}/votes_filtered.csv: has no votes; give EVA's votes_filtered.csv",
    ),
    "FLICKR-AES: no scores": (
        changed("FLICKR-AES, by worker", {"FLICKR-AES_image_score.txt": None}),
        "{}: has no FLICKR-AES_image_score.txt; give the folder of the lists",
    ),
    "FLICKR-AES: a score of 2": (
        changed("FLICKR-AES, by worker", {"FLICKR-AES_image_score.txt": FLICKR.replace(" 1\n", " 2\n")}),
        "{}/FLICKR-AES_image_score.txt:3: the score is '2'; give a number from 0 to 1",
    ),
    "FLICKR-AES: an unknown worker": (
        changed("FLICKR-AES, by worker", {"test_workers.txt": "A1\nA9\n"}),
        "{}/test_workers.txt:2: worker 'A9' has rated no image of FLICKR-AES_image_labeled_by_each_worker.csv",
    ),
    "FLICKR-AES: no ratings": (
        changed("FLICKR-AES, by worker", {"FLICKR-AES_image_labeled_by_each_worker.csv": None}),
        "{}: has no FLICKR-AES_image_labeled_by_each_worker.csv; give the folder of the lists",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("given", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_files(tmp_path, given, message) -> None:
    data, files = given
    with pytest.raises(DataError) as caught:
        read_dataset(data, write(tmp_path, files))
    assert str(caught.value) == message.replace("{}", str(tmp_path))


def test_text_that_is_none_is_refused(tmp_path) -> None:
    write(tmp_path, ACCEPTED["TAD66K, a table"][1])
    (tmp_path / "train.csv").write_bytes(b"image,score\n\xff\xfe.jpg,1\n")
    with pytest.raises(DataError) as caught:
        read_dataset("tad66k", tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/train.csv:2: is not UTF-8 text; give a table of TAD66K")


def test_other_refusals(tmp_path) -> None:
    for call, message in (
        (lambda: read_dataset("tad66", tmp_path), "data 'tad66' is unknown (did you mean tad66k?); choose one of"),
        (lambda: read_dataset("ava", tmp_path / "no"), f"{tmp_path}/no: is not a folder; give the folder of the lists"),
        (lambda: write_scored_set("ava", tmp_path, {"train": 3}, side=4), "side 4, images {'train': 3}: give sides"),
    ):  # fmt: skip
        with pytest.raises(DataError) as caught:
            call()
        assert str(caught.value).startswith(message)
    found = read_dataset("tad66k", write(tmp_path, ACCEPTED["TAD66K, a table"][1]))
    for share, message in (
        (1.5, "share 1.5 of train for val: must be between 0 and 1"),
        (
            0.5,
            "tad66k: 2 images of train leave 0 for train when a share of 0.5 is drawn for val; give more images",
        ),
    ):
        with pytest.raises(DataError) as caught:
            draw_split(found, "train", "val", share)
        assert str(caught.value).startswith(message)
    with pytest.raises(DataError) as caught:
        found.split("val")
    assert str(caught.value) == "tad66k: has no split 'val'; it has train, test"
    assert set(DATASETS) == {"ava", "tad66k", "aadb", "eva", "flickr-aes", "features"}
