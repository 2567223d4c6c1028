"""Images by name out of folders, globs, tars and lists: each once, in order, read lazily."""

import csv
import io
import os
import shutil
import subprocess
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from convnext_backbone.images.files import ImageList, name_images, output_names
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


def _outputs(*sources):
    images = name_images(sources)
    outputs = output_names(images, ".png")
    assert list(outputs) == list(images)
    return list(outputs.values())


def test_outputs_of_a_folder_are_named_as_its_images(folder):
    assert _outputs(folder) == ["a.png", "b/a.png", "b/c.png", "b-c.png", "b.png"]


def test_outputs_of_a_list_stay_below_one_folder_and_apart(tmp_path):
    for place in ("photos", "lists/photos", "lists/a"):
        (tmp_path / place).mkdir(parents=True)
    text = tmp_path / "lists" / "list.txt"
    inside = ["photos/0.jpg", "a/b.jpg"]
    text.write_text("\n".join(inside))
    assert _outputs(text) == ["photos/0.png", "a/b.png"]  # as they are written
    text.write_text("\n".join([*inside, "../photos/0.png", f"{tmp_path}/photos/1.png"]))
    outside = ["photos/0.png", "photos/1.png"]
    assert _outputs(text) == ["lists/photos/0.png", "lists/a/b.png", *outside]
    text.write_text(f"{tmp_path}/photos/0.png")
    assert _outputs(text) == ["0.png"]
    text.write_text("photos/../../photos/0.png\n./a/b.png")
    assert _outputs(text) == ["photos/0.png", "lists/a/b.png"]


@pytest.mark.parametrize(
    ("names", "outputs"),
    [
        (["a.jpg", "b.jpg"], ["a.png", "b.png"]),
        (["a.jpg", "a.png"], ["a.jpg.png", "a.png.png"]),
        (["a.jpg", "a.png", "a.png.bmp"], ["a.jpg.png", "a.png.png", "a.png.bmp.png"]),
        (["a.png", "a.png.bmp"], ["a.png", "a.png.bmp.png"]),
        (["a.jpg", "a.png/b.jpg"], ["a.jpg.png", "a.png/b.png"]),
        (["a.png/b.jpg", "c.jpg"], ["a.png/b.png", "c.png"]),
    ],
)
def test_outputs_are_different_whatever_suffixes_the_images_have(names, outputs, tmp_path):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert _outputs(tmp_path) == outputs


@pytest.mark.parametrize("format", ["gnu", "posix"])
@pytest.mark.parametrize("version", ["", "0.0", "0.1", "1.0"])
def test_a_sparse_file_of_a_tar_is_named_instead_of_read_as_its_neighbour(
    format, version, tmp_path
):
    """GNU tar leaves out holes of zeros: a member is shorter than its file, and in pieces."""
    if shutil.which("tar") is None or (format == "gnu" and version):
        pytest.skip("GNU tar writes it")
    Image.new("RGB", (300, 300)).save(tmp_path / "black.bmp")
    with open(tmp_path / "holes.bmp", "wb") as file:
        data = (tmp_path / "black.bmp").read_bytes()
        file.write(data[:54])
        file.truncate(len(data))
    (tmp_path / "z.dat").write_bytes(bytes([255]) * 300_000)
    command = ["tar", "-cSf", "s.tar", f"--format={format}", "holes.bmp", "black.bmp", "z.dat"]
    command += [f"--sparse-version={version}"] if version else []
    if subprocess.run(command, cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("GNU tar writes it")
    with tarfile.open(tmp_path / "s.tar") as tar:
        assert {member.name for member in tar if member.issparse()} == {"holes.bmp"}
    entries = {entry.name: entry for entry in ImageList([tmp_path / "s.tar"])}
    with pytest.raises(ValueError, match=r"'s\.tar/holes\.bmp': it is stored as a sparse file"):
        entries["s.tar/holes.bmp"].open()
    assert entries["s.tar/black.bmp"].open().read() == data
