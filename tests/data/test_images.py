"""Images from folders and IDX files: what is read, in which shape, and what is refused."""

import gzip
import io
import json
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from selfdistill.data import dataset, image_lists, image_store, images
from selfdistill.errors import DataError

RANDOM = np.random.default_rng(0)


def save(path, size=(12, 10), mode="RGB", shade=None, **options):
    """A picture of noise, or of one shade; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = RANDOM.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    if shade is not None:
        values[:] = shade
    Image.fromarray(values).convert(mode).save(path, **options)
    return path


def pets(root, count=10, **options):
    for label in ("cat", "dog"):
        for i in range(count):
            save(root / label / f"{i:02}.png", **options)
    return root


def load(root, **options):
    return dataset.load(str(root), **options)


# ---- folders by class ----------------------------------------------------------------------------------


def test_sub_folders_are_classes(tmp_path):
    loaded = load(pets(tmp_path / "pets", 20))
    assert (loaded.name, loaded.classes, loaded.shape) == ("pets", ("cat", "dog"), (3, 32, 32))
    assert (loaded.kind, loaded.augment, loaded.flips) == ("image", "weak", True)
    assert [len(loaded.test), len(loaded.audit), len(loaded.labelled)] == [8, 5, 27]
    for part in (loaded.test, loaded.audit, loaded.labelled):
        assert abs(float(loaded.y[part].float().mean()) - 0.5) <= 0.1


def test_pixels_arrive_with_their_label_and_place(tmp_path):
    """Each picture's own shade, and channels first."""
    for i, label in enumerate(("cat", "dog")):
        for j in range(4):
            save(tmp_path / label / f"{j}.png", shade=(10 * i + j, 100, 200))
    loaded = load(tmp_path, image_size=8)
    for row in range(8):
        red = 10 * int(loaded.y[row]) + row % 4
        assert loaded.x[row].flatten(1).unique(dim=1).tolist() == [[red], [100], [200]]


def test_resizing_is_pillows_bilinear(tmp_path):
    pets(tmp_path, 3)
    loaded = load(tmp_path, image_size=9)
    first = Image.open(tmp_path / "cat" / "00.png").resize((9, 9), Image.Resampling.BILINEAR)
    assert loaded.x[0].permute(1, 2, 0).equal(torch.from_numpy(np.array(first)))


def test_all_grey_is_one_channel_and_a_single_coloured_image_makes_three(tmp_path):
    pets(tmp_path, 4, mode="L")
    assert load(tmp_path).shape == (1, 32, 32)
    save(tmp_path / "unlabelled" / "bright.jpg")
    assert load(tmp_path).shape == (3, 32, 32)


def test_every_named_format_is_read(tmp_path):
    pets(tmp_path, 3)
    for suffix in ("png", "jpg", "JPEG", "bmp", "webp", "gif"):
        save(tmp_path / "cat" / f"x.{suffix}")
    (tmp_path / "cat" / "notes.txt").write_text("not a picture")
    (tmp_path / "cat" / "._x.png").write_text("a file of the file system")
    assert len(load(tmp_path).y) == 12


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    x = images.read_images([tmp_path / "deep.png"], (1, 8, 8))
    assert (x[0, 0].int() - torch.from_numpy(ramp.astype(np.int64) // 256)).abs().max() == 0


def test_pictures_are_turned_as_the_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to view
    values = np.zeros((8, 8, 3), np.uint8)
    values[:, :4] = 255  # stored: left half white; viewed: upper half white
    Image.fromarray(values).save(tmp_path / "phone.png", exif=exif)
    x = images.read_images([tmp_path / "phone.png"], (1, 8, 8))[0, 0]
    assert x[:4].min() == 255
    assert x[4:].max() == 0


def test_given_splits_are_honoured(tmp_path):
    pets(tmp_path / "train", 6)
    pets(tmp_path / "test", 3)
    pets(tmp_path / "val", 2)
    for seed in (0, 1):
        loaded = load(tmp_path, seed=seed)
        assert [len(p) for p in (loaded.labelled, loaded.audit, loaded.test)] == [12, 4, 6]
        assert loaded.classes == ("cat", "dog")
    with pytest.raises(DataError, match="its test rows are given by its files"):
        load(tmp_path, test=0.5)


def test_a_train_folder_alone_is_split(tmp_path):
    pets(tmp_path / "train", 10)
    assert len(load(tmp_path).test) == 4


@pytest.mark.parametrize("place", ["pets/unlabelled", "pets/unlabeled", "unlabelled", "pets/train/unlabelled"])
def test_unlabelled_is_no_class(tmp_path, place):
    pets(tmp_path / "pets" / ("train" if "train" in place else ""), 6)
    for i in range(5):
        save(tmp_path / place / f"deep{i}" / f"{i}.png")
    loaded = load(tmp_path / "pets")
    assert loaded.classes == ("cat", "dog")
    assert loaded.unlabelled.tolist() == [12, 13, 14, 15, 16]
    assert (loaded.y[loaded.unlabelled] == -1).all()


def test_unlabelled_folder_by_name(tmp_path):
    pets(tmp_path / "pets", 6)
    save(tmp_path / "street" / "a.png")
    assert len(load(tmp_path / "pets", unlabelled=str(tmp_path / "street")).unlabelled) == 1


def test_digits_take_unlabelled_pictures_in_their_own_scale(tmp_path):
    save(tmp_path / "white.png", size=(20, 20), shade=(255, 255, 255))
    digits = dataset.load("digits", unlabelled=str(tmp_path))
    assert digits.unlabelled.tolist() == [1797]
    assert digits.rows(digits.unlabelled).equal(torch.ones(1, 1, 8, 8))


# ---- what is left out ----------------------------------------------------------------------------------


def test_every_file_that_is_no_row_is_told_with_its_reason(tmp_path):
    root = pets(tmp_path / "pets", 4)
    truncated(root)
    text(root)
    (root / "dog" / "none.png").touch()
    (root / "dog" / "notes.txt").write_text("not a picture")
    (root / "dog" / ".hidden.png").write_text("a file of the file system")
    (root / ".git").mkdir()
    (root / "dog" / "phone.heic").write_bytes(b"?")
    (root / "dog" / "lost.png").symlink_to(root / "nowhere.png")
    (root / "dog" / "more").symlink_to(root / "cat")
    loaded = load(root)
    assert len(loaded.y) == 8
    assert loaded.note.removesuffix("\n" + loaded.test_note) == (
        "pets: 9 files were left out: 2 hidden (.git, dog/.hidden.png), 1 no regular file (dog/lost.png), "
        "1 a link to a folder (dog/more), 1 of unknown suffix .txt (dog/notes.txt), 1 of unknown suffix .heic "
        "(dog/phone.heic), 1 truncated (cat/zz.png), 1 empty (0 bytes) (dog/none.png), "
        "1 no image by its content (dog/zz.jpg)"
    )


def test_the_first_of_several_frames_is_read_and_told(tmp_path):
    root = pets(tmp_path / "pets", 4)
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (10, 200)]
    frames[0].save(root / "cat" / "a.tif", save_all=True, append_images=frames[1:])
    loaded = load(root, image_size=8)
    assert (
        loaded.note.removesuffix("\n" + loaded.test_note)
        == "pets: 1 with several frames, of which the first is read (such as cat/a.tif)"
    )
    row = loaded.names.index(str(root / "cat" / "a.tif"))
    assert loaded.x[row, 0].unique().tolist() == [10]


@pytest.mark.parametrize("suffix", ["tif", "webp", "avif", "jfif", "ppm", "tga", "pcx", "ico", "jp2"])
def test_what_pillow_reads_is_read(tmp_path, suffix):
    root = pets(tmp_path / "pets", 4)
    save(root / "cat" / f"x.{suffix}", size=(16, 16))
    loaded = load(root)
    assert len(loaded.y) == 9
    assert loaded.note == loaded.test_note


def test_a_file_that_another_program_would_read_is_left_out_under_any_name(tmp_path):
    root = pets(tmp_path / "pets", 4)
    Image.new("RGB", (8, 8)).save(root / "cat" / "x.eps")
    shutil.copy(root / "cat" / "x.eps", root / "cat" / "y.png")
    assert "of unknown suffix .eps" in load(root).note
    assert "1 no image by its content (cat/y.png)" in load(root).note


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_each_mode_is_read(tmp_path, mode):
    values = np.full((8, 8), 128 * 256, np.uint16)
    grey = Image.fromarray(values) if mode == "I;16" else Image.new("RGB", (8, 8), (128, 128, 128)).convert(mode)
    grey.save(tmp_path / "x.tif")
    x = images.read_images([tmp_path / "x.tif"], (1, 8, 8))
    assert mode in {"1", "P"} or (x.int() - 128).abs().max() <= 2


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.zeros((8, 8), np.float32), "floating pixel values"),
        (np.full((8, 8), 1 << 20, np.int32), "more than 16 bits"),
    ],
)
def test_values_that_do_not_fit_eight_bits_are_left_out(tmp_path, values, reason):
    root = pets(tmp_path / "pets", 4)
    Image.fromarray(values).save(root / "cat" / "deep.tif")
    assert reason in load(root).note


def test_digests_are_of_pixels_not_of_files(tmp_path):
    root = pets(tmp_path / "pets", 4)
    with Image.open(root / "cat" / "00.png") as picture:
        picture.save(root / "dog" / "copy.bmp")
        picture.save(root / "dog" / "copy.tif")
    loaded = load(root)
    assert loaded.digests.shape == (10, 16)
    assert len(loaded.digests.unique(dim=0)) == 8
    files = [image_store.ImageFile(Path(name), name) for name in loaded.names]
    assert b"".join(image_store.digests(files)) == loaded.digests.numpy().tobytes()


# ---- archives, tables of paths, data sets ----------------------------------------------------------------


def shards(root, folder, by="cls", names=("train-0.tar", "train-1.tar")):
    """The pictures of a folder as archives, every second one in the second archive."""
    root.mkdir()
    for number, name in enumerate(names):
        with tarfile.open(root / name, "w") as archive:
            for i, path in enumerate(sorted(folder.rglob("*.png"))):
                if i % len(names) != number:
                    continue
                key = f"{i:04}" if by else f"{path.parent.name}/{i:04}"
                archive.add(path, f"{key}.png")
                label = path.parent.name if by == "cls" else json.dumps({"label": path.parent.name})
                if by:
                    info = tarfile.TarInfo(f"{key}.{by}")
                    info.size = len(label)
                    archive.addfile(info, io.BytesIO(label.encode()))
    return root


@pytest.mark.parametrize("by", ["cls", "json", ""])
def test_archives_are_read_in_place(tmp_path, by):
    folder = load(pets(tmp_path / "pets", 6))
    archived = load(shards(tmp_path / "tars", tmp_path / "pets", by))
    assert archived.classes == ("cat", "dog")
    order = [int(Path(name).stem) for name in archived.names]
    assert archived.x.equal(folder.x[order])
    assert archived.y.equal((torch.tensor(order) >= 6).long())
    assert archived.note == archived.test_note


def test_archives_by_split(tmp_path):
    pets(tmp_path / "pets", 12)
    loaded = load(shards(tmp_path / "tars", tmp_path / "pets", "cls", ("train-0.tar", "val-0.tar", "test-0.tar")))
    assert [len(part) for part in (loaded.labelled, loaded.audit, loaded.test)] == [8, 8, 8]


def test_a_damaged_archive_is_named(tmp_path):
    root = shards(tmp_path / "tars", pets(tmp_path / "pets", 6))
    (root / "train-1.tar").write_bytes(gzip.compress((root / "train-1.tar").read_bytes()))
    with pytest.raises(DataError, match=r"train-1\.tar: not a readable tar file"):
        load(root)


def test_a_table_of_paths(tmp_path):
    folder = load(pets(tmp_path / "pets", 6))
    lines = [f"pets/{p.parent.name}/{p.name},{p.parent.name}" for p in sorted((tmp_path / "pets").rglob("*.png"))]
    (tmp_path / "list.csv").write_text("\n".join(["file,kind", *lines, "pets/cat/gone.png,cat", ""]))
    loaded = load(tmp_path / "list.csv")
    assert loaded.x.equal(folder.x)
    assert loaded.y.equal(folder.y)
    assert loaded.note.startswith("list.csv: images by column 'file', labels by column 'kind'; 1 file was left out")
    assert load(tmp_path / "list.csv", target="kind").classes == ("cat", "dog")
    with pytest.raises(DataError, match="no column 'sort' beside the images; use one of kind"):
        load(tmp_path / "list.csv", target="sort")


def test_a_table_of_paths_with_splits(tmp_path):
    pets(tmp_path / "pets", 6)
    words = {0: "test", 1: "val"}
    lines = [
        f"pets/{p.parent.name}/{p.name};{p.parent.name};{words.get(i % 6, 'train')}"
        for i, p in enumerate(sorted((tmp_path / "pets").rglob("*.png")))
    ]
    (tmp_path / "list.csv").write_text("\n".join(["file;kind;split", *lines]))
    loaded = load(tmp_path / "list.csv")
    assert [len(part) for part in (loaded.labelled, loaded.audit, loaded.test)] == [8, 2, 2]


def listed(root, count=24, **columns):
    """A table of paths of pictures, two classes, with further columns of a row's number."""
    root.mkdir(exist_ok=True)
    rows = [",".join(["file", "kind", *columns])]
    for i in range(count):
        save(root / f"{root.name}{i:02}.png")
        rows.append(
            ",".join([f"{root.name}{i:02}.png", ("cat", "dog")[i % 2], *(str(of(i)) for of in columns.values())])
        )
    (root / "list.csv").write_text("\n".join(rows) + "\n")
    return root / "list.csv"


def tarred(root, count=24, name="all.tar", **fields):
    """The same as an archive with a JSON file beside each picture."""
    root.mkdir(exist_ok=True)
    with tarfile.open(root / name, "w") as archive:
        for i in range(count):
            archive.add(save(root / f"{root.name}{name}{i:02}.png"), f"{i:02}.png")
            text = json.dumps({"label": ("cat", "dog")[i % 2], **{key: of(i) for key, of in fields.items()}}).encode()
            info = tarfile.TarInfo(f"{i:02}.json")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
    return root / name


@pytest.mark.parametrize("make", [listed, tarred])
def test_groups_and_times_of_listed_pictures(tmp_path, make):
    source = make(tmp_path / "a", patient=lambda i: f"p{i // 4}", day=lambda i: f"2024-01-{i + 1:02}")
    options = {"target": "kind"} if make is listed else {}
    grouped = load(source, groups="patient", **({} if make is tarred else {"target": "kind"}))
    owner = torch.arange(24) // 4
    parts = [set(owner[ids].tolist()) for ids in (grouped.labelled, grouped.audit, grouped.test)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 6
    timed = load(source, time="day", **options)
    assert timed.labelled.max() < timed.audit.min()
    assert timed.audit.max() < timed.test.min()
    with pytest.raises(DataError, match=r"no column is called 'nurse' \(--groups\)"):
        load(source, groups="nurse", **options)
    with pytest.raises(DataError, match="--time takes numbers or dates"):
        load(source, time="patient", **options)


def test_a_group_must_be_named_and_an_unreadable_picture_moves_no_group(tmp_path):
    source = listed(tmp_path / "a", who=lambda i: i // 4)
    (tmp_path / "a" / "a00.png").write_text("no picture")
    data = load(source, groups="who", target="kind")
    assert data.groups.tolist() == [(i // 4) for i in range(1, 24)]
    listed(tmp_path / "a", who=lambda i: "" if i == 2 else i // 4)
    with pytest.raises(DataError, match=r"row 3 .*--groups needs a value"):
        load(source, groups="who", target="kind")
    with pytest.raises(DataError, match="its images have no columns or fields; leave groups out"):
        load(pets(tmp_path / "pets", 4), groups="who")


@pytest.mark.parametrize("main", ["list", "tar", "folder"])
@pytest.mark.parametrize("further", ["list", "tar", "folder"])
def test_splits_of_any_kind_of_list(tmp_path, main, further):
    kinds = {
        "list": lambda name, count: listed(tmp_path / name, count),
        "tar": lambda name, count: tarred(tmp_path / name, count),
        "folder": lambda name, count: pets(tmp_path / name, count // 2),
    }
    source, test, check = kinds[main]("a", 20), kinds[further]("b", 8), kinds[further]("c", 6)
    loaded = load(source, test=str(test), audit=str(check))
    assert loaded.classes == ("cat", "dog")
    assert loaded.test.tolist() == list(range(20, 28))
    assert loaded.audit.tolist() == list(range(28, 34))
    assert len(loaded.labelled) == 20
    again = load(source, test=str(source))
    assert again.copies.across.tolist() == list(range(20, 40))
    with pytest.raises(DataError, match="nowhere: no such file or folder of images"):
        load(source, test=str(tmp_path / "nowhere"))


def test_a_split_of_a_list_is_given_once_and_unlabelled_pictures_are_read(tmp_path):
    source = listed(tmp_path / "a", 20, split=lambda i: "validation" if i < 4 else "")
    save(tmp_path / "more" / "x" / "1.png")
    loaded = load(source, unlabelled=str(tmp_path / "more"))
    assert (loaded.audit.tolist(), loaded.unlabelled.tolist()) == ([0, 1, 2, 3], [20])
    with pytest.raises(DataError, match="has rows of the audit split"):
        load(source, audit=str(source))
    with pytest.raises(DataError, match=r"no \.json file in it has the field 'kind'"):
        load(tarred(tmp_path / "b"), target="kind")
    assert load(tarred(tmp_path / "b", kind=lambda i: i % 3), target="kind").classes == ("0", "1", "2")


def test_predictions_of_archives_and_of_tables_of_paths(tmp_path):
    source, archive = listed(tmp_path / "a"), tarred(tmp_path / "b")
    data = load(source)
    dataset.write_card(data, tmp_path / "model")
    x, names = dataset.inputs_for(str(source), tmp_path / "model")
    assert names == [f"a{i:02}.png" for i in range(24)]
    assert x[torch.arange(24)].equal(data.x)
    for place in (archive, archive.parent):
        if place.is_dir():
            for file in place.glob("*.png"):
                file.unlink()
        x, names = dataset.inputs_for(str(place), tmp_path / "model")
        assert x[torch.arange(24)].equal(load(place).x)
        assert [name.removeprefix("all.tar/") for name in names] == [f"{i:02}.png" for i in range(24)]
        assert not dataset.unread(str(place), names)


def test_a_saved_data_set_of_images_is_read_in_place(tmp_path):
    import datasets

    folder = load(pets(tmp_path / "pets", 8))
    kinds = datasets.ClassLabel(names=["dog", "cat"])
    features = datasets.Features({"picture": datasets.Image(), "kind": kinds, "who": datasets.Value("int64")})

    def rows(first, count, hidden=False):
        numbers = range(first, first + count)
        return datasets.Dataset.from_dict({
            "picture": [{"path": None, "bytes": Path(folder.names[i]).read_bytes()} for i in numbers],
            "kind": [-1 if hidden else int(Path(folder.names[i]).parent.name == "cat") for i in numbers],
            "who": [i // 2 for i in numbers],
        }, features=features)  # fmt: skip

    rows(0, 16).save_to_disk(str(tmp_path / "all"))
    loaded = load(tmp_path / "all")
    assert loaded.x.equal(folder.x)
    assert [loaded.classes[y] for y in loaded.y] == [folder.classes[y] for y in folder.y]
    assert "images by column 'picture', labels by column 'kind'" in loaded.note
    grouped = load(tmp_path / "all", groups="who")
    assert not {int(i) // 2 for i in grouped.test} & {int(i) // 2 for i in grouped.labelled}
    parts = {"train": rows(0, 10), "validation": rows(10, 3), "test": rows(13, 3)}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "split"))
    loaded = load(tmp_path / "split", target="kind")
    assert [len(part) for part in (loaded.labelled, loaded.audit, loaded.test)] == [10, 3, 3]
    datasets.DatasetDict({**parts, "test": rows(13, 3, hidden=True)}).save_to_disk(str(tmp_path / "hidden"))
    assert "splits that are not read: test" in load(tmp_path / "hidden").note
    rows(13, 3, hidden=True).save_to_disk(str(tmp_path / "more"))
    assert len(load(tmp_path / "all", unlabelled=str(tmp_path / "more")).unlabelled) == 3
    dataset.write_card(folder, tmp_path / "model")
    x, names = dataset.inputs_for(str(tmp_path / "all"), tmp_path / "model")
    assert x[torch.arange(16)].equal(folder.x)
    assert names[3] == "rows[3]"
    assert not dataset.unread(str(tmp_path / "all"), names)
    with pytest.raises(DataError, match="no column 'sort' beside the images; use one of kind, who"):
        load(tmp_path / "all", target="sort")


def test_a_row_of_a_saved_data_set_without_an_image_is_left_out_and_fetches_nothing(tmp_path):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    good = [Path(save(tmp_path / f"{i}.png")).read_bytes() for i in range(12)]
    cells = [*({"path": None, "bytes": b} for b in good), None, {"path": None, "bytes": b"none"}]
    rows = {"image": cells, "label": ["a", "b"] * 7}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "set"))
    loaded = load(tmp_path / "set")
    assert len(loaded.x) == 12
    told = "2 files were left out: 1 no image in the row (rows[12]), 1 no image by its content (rows[13])"
    assert told in loaded.note
    distant = [{"image": {"path": "http://nowhere.invalid/a.png", "bytes": None}}]
    with pytest.raises(DataError, match="no image in the row"):
        image_lists._stored_image(distant, "image", 0)


class Rows(torch.utils.data.Dataset[Any]):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        return self.rows[number]


def test_data_sets_of_python(tmp_path, monkeypatch):
    folder = load(pets(tmp_path / "pets", 6))
    files = [Image.open(name) for name in folder.names]
    pairs = dataset.from_dataset(Rows(list(zip(files, folder.y.tolist(), strict=True))), ("cat", "dog"))
    assert pairs.tensor.equal(folder.tensor)
    assert pairs.y.equal(folder.y)
    rows = Rows([{"image": image, "label": label} for image, label in zip(files, folder.y.tolist(), strict=True)])
    monkeypatch.setattr(image_store, "IN_MEMORY", 0)
    assert dataset.from_dataset(rows).x[torch.arange(12)].equal(folder.x)
    tensors = torch.utils.data.TensorDataset(folder.x.float() / 255, folder.y)
    assert dataset.from_dataset(tensors).rows(torch.arange(12)).equal(folder.rows(torch.arange(12)))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no rows by number"),
        ([3, 4], "row 0 is a int without one input"),
        ([(torch.ones(2), "cat")], "without one input and a number for its label"),
        ([(torch.ones(2), 0), (torch.ones(3), 1)], "no tensors of one shape"),
    ],
)
def test_other_rows_are_refused(rows, message):
    with pytest.raises(DataError, match=message):
        dataset.from_dataset(Rows(rows))


# ---- refusals ------------------------------------------------------------------------------------------


def empty(root):
    (root / "unlabelled").mkdir()


def truncated(root):
    path = save(root / "cat" / "zz.png", size=(64, 64))
    path.write_bytes(path.read_bytes()[:300])


def text(root):
    (root / "dog" / "zz.jpg").write_text("hello")


def unreadable(root):
    for path in (root / "dog").iterdir():
        path.write_text("hello")


def loose(root):
    save(root / "beside.png")


def hollow(root):
    (root / "fish").mkdir()


def single(root):
    save(root / "fish" / "one.png")


def solitary(root):
    shutil.rmtree(root / "dog")


def flat(root):
    shutil.rmtree(root / "dog")
    shutil.rmtree(root / "cat")
    save(root / "a.png")


def test_a_folder_around_the_class_folders_is_asked_about(tmp_path):
    """Beside them lies a table, which is no image."""
    pets(tmp_path / "photos", 4)
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"only the class 'photos'.*did you mean .*photos\?") as caught:
        load(tmp_path)
    assert str(tmp_path / "photos") + "?" in str(caught.value)
    load(tmp_path / "photos")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (empty, r"unlabelled: no image in it"),
        (unreadable, r"no image of class 'dog' can be read \(4 files were left out: 4 no image by its content \(dog"),
        (loose, r"beside\.png: an image beside the class folders"),
        (hollow, r"fish: no image in it"),
        (single, r"class 'fish' has too few labelled rows to split \(1, needed 3\)"),
        (solitary, r"only the class 'cat'"),
        (flat, r"no sub-folder with images"),
    ],
)
def test_spoilt_folders_are_refused_in_one_line(tmp_path, spoil, message):
    spoil(pets(tmp_path, 4))
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_class_only_in_test_is_refused(tmp_path):
    pets(tmp_path / "train", 4)
    pets(tmp_path / "test", 2)
    save(tmp_path / "test" / "fish" / "a.png")
    with pytest.raises(DataError, match="class 'fish' is in the test split"):
        load(tmp_path)


def test_a_folder_beside_train_is_not_lost_in_silence(tmp_path):
    pets(tmp_path / "train", 4)
    pets(tmp_path / "extra", 4)
    with pytest.raises(DataError, match="extra: beside train/"):
        load(tmp_path)


def test_a_file_that_is_no_table_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match="neither a folder nor a table"):
        load(tmp_path / "notes.txt")


def test_missing_pillow_names_the_extra(tmp_path, monkeypatch):
    pets(tmp_path, 4)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r"pip install 'selfdistill\[images\]'"):
        load(tmp_path)


# ---- IDX -----------------------------------------------------------------------------------------------


def write_idx(folder, packed=True, train=60, test=20):
    """Four IDX files written by hand; returns images and labels."""
    folder.mkdir(exist_ok=True)
    written = []
    for part, count in (("train", train), ("t10k", test)):
        x = RANDOM.integers(0, 256, (count, 9, 11)).astype(np.uint8)
        y = (np.arange(count) % 4).astype(np.uint8)
        for name, array in ((f"{part}-images-idx3-ubyte", x), (f"{part}-labels-idx1-ubyte", y)):
            header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            content = header + array.tobytes()
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
        written.append((x, y))
    return written


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_keep_their_test_split(tmp_path, packed):
    (train, train_y), (test, test_y) = write_idx(tmp_path / "letters", packed)
    loaded = load(tmp_path / "letters")
    assert (loaded.name, loaded.shape, loaded.classes) == ("letters", (1, 9, 11), ("0", "1", "2", "3"))
    assert loaded.test.tolist() == list(range(60, 80))
    assert loaded.x[:, 0].equal(torch.from_numpy(np.concatenate([train, test])))
    assert loaded.y.tolist() == [*train_y, *test_y]
    assert len(loaded.audit) == 9
    assert not loaded.flips, "an IDX file does not say whether a mirror image keeps its class"


def test_fashion_mnist_is_found_where_the_variable_points(tmp_path, monkeypatch):
    write_idx(tmp_path / "fashion-mnist")
    monkeypatch.setenv("SELFDISTILL_DATA", str(tmp_path))
    assert images.fashion_folder() == tmp_path / "fashion-mnist"
    loaded = dataset.load("fashion-mnist")
    assert loaded.name == "fashion-mnist"
    assert loaded.flips
    assert loaded.classes[0] == "T-shirt/top"


def test_missing_fashion_mnist_names_package_and_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFDISTILL_DATA", str(tmp_path))
    monkeypatch.setattr(images, "DEBIAN", Path("/nowhere"))
    with pytest.raises(DataError, match="install the Debian package dataset-fashion-mnist, or set SELFDISTILL_DATA"):
        dataset.load("fashion-mnist")


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("t10k-labels-idx1-ubyte.gz", None, "no file t10k-labels"),
        ("train-images-idx3-ubyte.gz", lambda b: b[: len(b) // 2], "cannot be read"),
        ("train-images-idx3-ubyte.gz", lambda b: b"plain text", "cannot be read"),
        ("train-labels-idx1-ubyte.gz", lambda b: gzip.compress(b"text, not IDX"), "not an IDX file"),
        (
            "train-labels-idx1-ubyte.gz",
            lambda b: gzip.compress(gzip.decompress(b)[:-1]),
            r"59 bytes where \[60\] are announced",
        ),
        (
            "train-labels-idx1-ubyte.gz",
            lambda b: gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 2, 0, 1])),
            "2 labels for 60 images",
        ),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, name, spoil, message):
    write_idx(tmp_path)
    path = tmp_path / name
    if spoil is None:
        path.unlink()
    else:
        path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        load(tmp_path)
