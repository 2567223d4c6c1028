"""Images by name out of folders, globs, tars and lists: each once, in order, read lazily."""

import csv
import io
import os
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from convnext_backbone.images.lists import ImageList, name_images
from convnext_backbone.images.reading import load_image


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    (root / "b").mkdir(parents=True)
    for name in ("a.png", "b/a.png", "b/c.JPG", "b.png", "b-c.png"):
        Image.new("RGB", (8, 8)).save(root / name, "PNG")
    (root / "notes.txt").write_text("no image")
    return root


def names(*sources, **options):
    return [entry.name for entry in ImageList(sources, **options)]


def test_a_folder_gives_its_images_in_the_order_of_paths(folder):
    expected = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.suffix != ".txt")
    assert names(folder) == [p.as_posix() for p in expected if (folder / p).is_file()]
    assert names(folder) == ["a.png", "b/a.png", "b/c.JPG", "b-c.png", "b.png"]


def test_linked_folders_are_followed_but_not_round_and_round(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "elsewhere" / "d.png")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "b" / "loop").symlink_to(folder)
    assert names(folder)[-1] == "link/d.png"
    assert not [name for name in names(folder) if "loop" in name]


def test_pipes_in_a_folder_are_passed_over(folder):
    os.mkfifo(folder / "pipe.png")
    assert "pipe.png" not in names(folder)


def test_names_come_from_what_the_sources_have_in_common(folder):
    assert "b/a.png" in names(folder)
    assert names(folder / "b", folder / "a.png") == ["b/a.png", "b/c.JPG", "a.png"]
    assert names(folder / "b" / "a.png") == ["a.png"]
    assert names(folder / "b", str(folder / "b" / "*.png")) == ["a.png", "c.JPG"]
    assert names(folder / "a.png", folder / "a.png") == ["a.png"]


def test_lists_of_paths_keep_the_names_as_they_are_written(folder):
    written = ["b/a.png", "a.png", str(folder / "b.png"), "b/a.png"]
    (folder / "list.txt").write_text("\r\n".join(written) + "\n\n")
    with open(folder / "list.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerows([("label", "path"), *((3, name) for name in written)])
    expected = written[:3]
    assert names(folder / "list.txt") == expected
    assert names(folder / "list.csv", column="path") == expected
    for entry in ImageList([folder / "list.txt"]):
        assert os.path.samefile(entry.path, folder / entry.name)
    with pytest.raises(ValueError, match=r"must have the column 'file', got \['label', 'path'\]"):
        names(folder / "list.csv")


def test_a_column_of_a_parquet_file_is_a_list(folder):
    pq.write_table(pa.table({"file": ["b/a.png", "a.png"], "n": [1, 2]}), folder / "l.parquet")
    assert names(folder / "l.parquet") == ["b/a.png", "a.png"]
    pq.write_table(pa.table({"file": ["b/a.png", None]}), folder / "l.parquet")
    with pytest.raises(ValueError, match="entry 1 must be a path, got None"):
        names(folder / "l.parquet")


def test_an_image_is_there_once_however_the_names_are_ordered(tmp_path):
    ascending = [f"{i:04d}.png" for i in range(1000)]
    for order in (ascending, ascending[::-1], ascending[500:] + ascending[:700]):
        (tmp_path / "list.txt").write_text("\n".join([*order, *order[:10]]))
        found = names(tmp_path / "list.txt")
        assert len(found) == len(set(found)) == 1000
        assert found == list(dict.fromkeys(order))


def test_the_images_of_a_tar_are_read_where_they_lie(folder, tmp_path):
    with tarfile.open(tmp_path / "s-0.tar", "w") as tar:
        for name in ("0001.png", "0001.json", "0002.png"):
            tar.add(folder / "a.png", arcname=name)
        data = b"damaged"
        info = tarfile.TarInfo("dir/0003.jpg")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    (tmp_path / "s-1.tar").write_bytes((tmp_path / "s-0.tar").read_bytes())
    entries = list(ImageList([str(tmp_path / "s-*.tar")]))
    assert [entry.name for entry in entries] == [
        f"s-{n}.tar/{name}" for n in (0, 1) for name in ("0001.png", "0002.png", "dir/0003.jpg")
    ]
    assert entries[1].open().getvalue() == (folder / "a.png").read_bytes()
    assert entries[2].open().getvalue() == b"damaged"
    with pytest.raises(ValueError, match="must be unpacked"):
        name_images([tmp_path / "s-0.tar"])
    (tmp_path / "cut.tar").write_bytes((tmp_path / "s-0.tar").read_bytes()[:700])
    with pytest.raises(ValueError, match=r"cut\.tar is no whole, uncompressed tar"):
        names(tmp_path / "cut.tar")


def test_sources_that_cannot_be_used_are_named(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_bytes(b"\xff.png\n")
    (folder / "l.txt").write_text("a.png")
    os.mkfifo(tmp_path / "pipe.txt")
    for sources, error, reason in [
        ([], ValueError, "must not be empty"),
        ([""], ValueError, "must not be empty"),
        ([tmp_path / "empty"], ValueError, "no images in .*empty"),
        ([tmp_path / "nowhere"], FileNotFoundError, "no such image or folder"),
        ([str(tmp_path / "*.gif")], ValueError, "no file matches"),
        ([tmp_path / "list.txt"], ValueError, "no list of paths in UTF-8"),
        ([tmp_path / "pipe.txt"], ValueError, "is a FIFO"),
        ([folder / "l.txt", folder / "a.png"], ValueError, "cannot be mixed with images"),
    ]:
        with pytest.raises(error, match=reason):
            names(*sources)
    os.rename(folder / "a.png", os.fsencode(folder) + b"/\xff.png")
    with pytest.raises(ValueError, match="name must be Unicode"):
        names(folder)


def _add(tar, name, data=b"data", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))


def test_a_tar_with_a_damaged_header_is_named_instead_of_ending_there(tmp_path):
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("a.png", "b.png", "c.png"):
            _add(tar, name)
    data = bytearray(path.read_bytes())
    data[1024 + 1] ^= 1  # of the header of b.png
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"s\.tar is damaged: .* at byte 1024"):
        names(path)
    path.write_bytes(data[:1024])  # without the blocks of zeros that end a tar, as some write it
    assert names(path) == ["s.tar/a.png"]


def test_links_in_a_tar_lead_to_its_own_files_or_are_unreadable(tmp_path):
    path = tmp_path / "s.tar"
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    symbolic, hard = {"type": tarfile.SYMTYPE}, {"type": tarfile.LNKTYPE}
    with tarfile.open(path, "w") as tar:
        _add(tar, "./d/a.bin", b"bytes of a")
        for name, target, kind in [
            ("d/hard.png", "d/a.bin", hard),
            ("d/soft.png", "a.bin", symbolic),
            ("d/e/chain.png", "../soft.png", symbolic),
            ("absolute.png", str(secret), symbolic),
            ("above.png", "../secret.png", symbolic),
            ("ring.png", "ring.png", symbolic),
            ("gone.png", "nowhere.png", hard),
        ]:
            _add(tar, name, b"", linkname=target, **kind)
    entries = {entry.name.removeprefix("s.tar/"): entry for entry in ImageList([path])}
    for name in ("d/hard.png", "d/soft.png", "d/e/chain.png"):
        assert entries.pop(name).open().getvalue() == b"bytes of a"
    assert list(entries) == ["absolute.png", "above.png", "ring.png", "gone.png"]
    for name, entry in entries.items():
        with pytest.raises(ValueError, match=f"{name}': it links to no file of the tar"):
            entry.open()


def test_of_members_of_one_name_the_last_counts_as_in_tarfile(tmp_path):
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        _add(tar, "a.png", b"old")
        _add(tar, "b.png", b"other")
    with tarfile.open(path, "a") as tar:
        _add(tar, "a.png", b"new")
    found = {entry.name: entry.open().getvalue() for entry in ImageList([path])}
    assert found == {"s.tar/a.png": b"new", "s.tar/b.png": b"other"}


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz", ".TAR.XZ"])
def test_a_compressed_tar_is_refused_by_name(suffix, tmp_path):
    (tmp_path / f"s{suffix}").write_bytes(b"")
    with pytest.raises(ValueError, match=rf"s{suffix} is compressed"):
        ImageList([tmp_path / f"s{suffix}"])


def test_a_link_to_itself_is_one_image_that_cannot_be_read(folder):
    (folder / "z.jpg").symlink_to("z.jpg")
    assert names(folder)[-1] == "z.jpg"
    with pytest.raises(OSError, match="cannot read image"):
        load_image(folder / "z.jpg")
