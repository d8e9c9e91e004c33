"""labelme, COCO, YOLO and CVAT become the masks that their annotations describe."""

import base64
import json
import shutil
from io import BytesIO

import numpy as np
import pytest
import yaml
from annotation_files import samples
from PIL import Image

from hf_sam_adapt.convert.annotations import convert_annotations
from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.data.reading import Reading
from hf_sam_adapt.data.sources import open_source
from hf_sam_adapt.errors import UserError


HEIGHT, WIDTH = 40, 60


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def photograph(rng, size=(HEIGHT, WIDTH)) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))


def encoded(image: Image.Image) -> str:
    stream = BytesIO()
    image.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def box(x1: int, y1: int, x2: int, y2: int, size=(HEIGHT, WIDTH)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[y1:y2, x1:x2] = True
    return mask


def corners(x1, y1, x2, y2) -> list[list[float]]:
    return [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]


def labelme(path, shapes, image="", size=(HEIGHT, WIDTH), data=None):
    content = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": image, "imageData": data}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | {"imageHeight": size[0], "imageWidth": size[1]}))


def shape(label, points, kind="polygon", **more) -> dict:
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}, **more}


def mask_of(out, stem: str) -> np.ndarray:
    return np.asarray(Image.open(out / "masks" / f"{stem}.png"))


def test_labelme_shapes(rng, tmp_path, capsys):
    source, out = tmp_path / "photos", tmp_path / "out"
    source.mkdir()
    for name in "abc":
        photograph(rng).save(source / f"{name}.jpg")
    bitmap = rng.random((6, 9)) > 0.5
    drawn = encoded(Image.fromarray(bitmap))
    labelme(
        source / "a.json",
        [
            shape("dog", corners(5, 4, 30, 20)),
            shape("cat", [[40, 30], [20, 10]], "rectangle"),  # on top, from its lower right corner
            shape("_background_", corners(8, 6, 12, 10)),  # a hole
            shape("__ignore__", corners(0, 36, 60, 40)),
            shape("dog", [[50, 8], [50, 13]], "circle"),
            shape("cat", [[1, 30], [10, 36]], "mask", mask=drawn),
            shape("dog", [[0, 0], [9, 9]], "line"),
            shape("dog", [[0, 0]], "point"),
            shape("dog", [[0, 0], [9, 9]]),
        ],
        "..\\photos\\a.jpg",
    )
    labelme(source / "b.json", [], "b.jpg")
    notes = convert_annotations("labelme", source, out)
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[box(5, 4, 30, 20)] = 2
    expected[box(20, 10, 40, 30)] = 1
    expected[box(8, 6, 12, 10)] = 0
    expected[36:] = 255
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    disc = (columns - 50) ** 2 + (rows - 8) ** 2 <= 25
    expected[disc] = 2
    expected[30:36, 1:10][bitmap] = 1
    found = mask_of(out, "a")
    near = np.abs((columns - 50) ** 2 + (rows - 8) ** 2 - 25) < 3  # the circle is a polygon
    assert (
        np.array_equal(found[~near], expected[~near])
        and abs(int((found[near] > 0).sum()) - int(disc[near].sum())) <= 3
    )
    assert not mask_of(out, "b").any()
    assert notes == [
        "2 images; classes: 0 background, 1 cat, 2 dog",
        "left out: 1 x image without a JSON file",
        "left out: 1 x line without an area",
        "left out: 1 x point without an area",
        "left out: 1 x polygon without an area",
    ]
    assert (out / "images/a.jpg").read_bytes() == (source / "a.jpg").read_bytes()
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert recipe == {
        "dataset": ".",
        "mask_values": "index",
        "num_labels": 3,
        "id2label": {0: "background", 1: "cat", 2: "dog"},
    }
    source = open_source(out, Reading(**{key: value for key, value in recipe.items() if key != "dataset"}))
    assert source.num_labels == 3 and set(samples(source)) == {"a", "b"}


def test_labelme_embedded_images_exif_and_splits(rng, tmp_path):
    source, out = tmp_path / "photos", tmp_path / "out"
    image = photograph(rng)
    labelme(source / "train/x.json", [shape("thing", corners(1, 2, 9, 8))], "gone.jpg", data=encoded(image))
    turned = photograph(rng)
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held upright: shown as 40 x 60
    (source / "test").mkdir()
    turned.save(source / "test/y.jpg", exif=exif, quality=95)
    labelme(source / "test/y.json", [shape("thing", corners(1, 2, 9, 58))], "y.jpg", size=(WIDTH, HEIGHT))
    turned.save(source / "test/z.jpg", exif=exif, quality=95)  # annotated by a tool that does not turn
    labelme(source / "test/z.json", [shape("thing", corners(1, 2, 58, 9))], "z.jpg")
    convert_annotations("labelme", source, out)
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert "num_labels" not in recipe and recipe["id2label"] == {0: "background", 1: "thing"}
    data = load_segmentation_dataset(**recipe | {"dataset": out})
    assert np.array_equal(data.train[0].image, np.asarray(image))
    assert np.array_equal(data.train[0].mask, box(1, 2, 9, 8))
    upright, raw = data.test[0], data.test[1]
    assert np.array_equal(upright.mask, box(1, 2, 9, 58, (WIDTH, HEIGHT)))
    assert np.array_equal(raw.mask, box(1, 2, 58, 9))
    assert np.array_equal(upright.image, np.rot90(raw.image, -1))


def coco(root, rng, name="annotations.json"):
    runs = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * 5, HEIGHT * (WIDTH - 5)]}  # the first five columns
    ring = [np.ravel(corners(*box)).tolist() for box in ((20, 10, 40, 30), (30, 20, 50, 35))]
    root.mkdir(parents=True, exist_ok=True)
    for number in (1, 2):
        photograph(rng).save(root / f"{number}.jpg")
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": HEIGHT, "width": WIDTH} for n in (1, 2)],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "segmentation": ring},
            {"id": 2, "image_id": 1, "category_id": 3, "segmentation": runs},
            {"id": 3, "image_id": 2, "category_id": 3, "segmentation": runs, "iscrowd": 1},
            {"id": 4, "image_id": 2, "category_id": 3, "bbox": [0, 0, 5, 5]},
        ],
        "categories": [{"id": 3, "name": "water"}, {"id": 7, "name": "road"}, {"id": 9, "name": "unused"}],
    }
    (root / name).write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("name", ["annotations.json", "any.json"])
def test_coco_equals_what_is_read_directly(rng, tmp_path, name):
    root = coco(tmp_path / "coco", rng, name)
    notes = convert_annotations("coco", root if name == "annotations.json" else root / name, tmp_path / "out")
    assert notes == ["2 images; classes: 0 background, 1 water, 2 road", "left out: 1 x object with a box only"]
    first, second = (mask_of(tmp_path / "out", stem) for stem in "12")
    assert (first[:, :5] == 1).all() and np.array_equal(first == 2, box(20, 10, 40, 30) | box(30, 20, 50, 35))
    assert (second[:, :5] == 255).all() and not second[:, 5:].any()
    if name == "annotations.json":
        direct = samples(open_source(root))
        recipe = yaml.safe_load((tmp_path / "out/recipe.yaml").read_text())
        del recipe["dataset"]
        converted = samples(open_source(tmp_path / "out", Reading(**recipe)))
        assert set(direct) == set(converted) == {"1", "2"}
        for id_, (image, mask) in direct.items():
            assert np.array_equal(converted[id_][0], image) and np.array_equal(converted[id_][1], mask)


def yolo(root, rng, names=("small", "large")):
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for number in range(2):
            photograph(rng).save(root / "images" / split / f"{number}.jpg")
    scale = np.array([WIDTH, HEIGHT])

    def line(label, *box):
        return f"{label} " + " ".join(f"{value:.6f}" for value in (np.array(corners(*box)) / scale).ravel())

    text = "\n".join([line(0, 20, 10, 30, 20), line(1, 10, 5, 50, 35), "0 0.5 0.5 0.1 0.1", ""])
    (root / "labels/train/0.txt").write_text(text)
    (root / "labels/val/1.txt").write_text(line(1, 1, 2, 3, 4))
    (root / "data.yaml").write_text(
        yaml.safe_dump({"train": "images/train", "val": "images/val", "names": list(names)})
    )
    return root


def test_yolo(rng, tmp_path):
    notes = convert_annotations("yolo", yolo(tmp_path / "yolo", rng), tmp_path / "out")
    assert notes[0] == "4 images (2 train, 2 val); classes: 0 background, 1 small, 2 large"
    assert notes[1:] == [
        "2 x image without a label file, taken as background",
        "left out: 1 x box (a line of five numbers)",
    ]
    found = mask_of(tmp_path / "out/train", "0")
    assert np.array_equal(found > 0, box(10, 5, 50, 35)) and np.array_equal(found == 1, box(20, 10, 30, 20))
    assert not mask_of(tmp_path / "out/train", "1").any()
    assert np.array_equal(mask_of(tmp_path / "out/val", "1") == 2, box(1, 2, 3, 4))


@pytest.mark.parametrize("place", ["../train/images", "train.txt", {"path": "absolute"}])
def test_yolo_folders(rng, tmp_path, place):
    root = yolo(tmp_path / "yolo", rng)
    for kind in ("images", "labels"):
        (root / "train").mkdir(exist_ok=True)
        shutil.move(root / kind / "train", root / "train" / kind)
    content = {"names": {1: "large", 0: "small"}, "train": "train/images"}
    if isinstance(place, dict):
        content["path"] = str(root)
    else:
        content["train"] = place
    (root / "train.txt").write_text("./train/images/0.jpg\n./train/images/1.jpg\n")
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    notes = convert_annotations("yolo", root / "data.yaml", tmp_path / "out")
    assert notes[0] == "2 images; classes: 0 background, 1 small, 2 large"
    assert np.array_equal(mask_of(tmp_path / "out", "0") > 0, box(10, 5, 50, 35))


XML = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<meta><task><labels><label><name>wall</name></label><label><name>door</name></label></labels></task></meta>
<image id="0" name="a/one.jpg" width="60" height="40" subset="Train">
  <box label="door" z_order="1" xtl="20" ytl="10" xbr="30" ybr="20" occluded="0"/>
  <polygon label="wall" z_order="0" points="10,5;50,5;50,35;10,35"/>
  <box label="wall" z_order="0" xtl="0" ytl="0" xbr="4" ybr="8" rotation="90"/>
  <mask label="door" z_order="2" rle="1, 2, 3" left="40" top="30" width="3" height="2"/>
  <ellipse label="wall" z_order="0" cx="55" cy="20" rx="2" ry="15"/>
  <polyline label="wall" points="0,0;9,9"/>
  <tag label="wall"/>
</image>
<image id="1" name="two.jpg" width="60" height="40" subset="Test"/>
</annotations>
"""


def test_cvat_for_images(rng, tmp_path):
    root = tmp_path / "cvat"
    (root / "images/Train/a").mkdir(parents=True)
    photograph(rng).save(root / "images/Train/a/one.jpg")
    photograph(rng).save(root / "images/two.jpg")
    (root / "annotations.xml").write_text(XML)
    archive = shutil.make_archive(str(tmp_path / "export"), "zip", root)
    notes = convert_annotations("cvat", archive, tmp_path / "out")
    assert notes == [
        "2 images (1 train, 1 test); classes: 0 background, 1 wall, 2 door",
        "left out: 1 x polyline without an area",
    ]
    found = mask_of(tmp_path / "out/train", "a_one")
    door = box(20, 10, 30, 20)
    door[30, 41:43] = True  # two of six pixels, after one outside
    assert np.array_equal(found == 2, door)
    wall = box(10, 5, 50, 35) | box(0, 2, 6, 6)  # turned about (2, 4): 8 wide and 4 high
    wall[door] = False
    assert np.array_equal(found[:, :52] == 1, wall[:, :52])
    rows, columns = np.mgrid[:HEIGHT, 52:WIDTH] + 0.5
    ellipse = ((columns - 55) / 2) ** 2 + ((rows - 20) / 15) ** 2 <= 1
    assert ((found[:, 52:] == 1) != ellipse).sum() <= 2
    assert not mask_of(tmp_path / "out/test", "two").any()


def test_cvat_segmentation_masks(rng, tmp_path):
    root = tmp_path / "cvat"
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    (root / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nwall:128,0,0::\ndoor:0,64,200::\n"
    )
    expected = {}
    for name, split in (("one", "train"), ("two", "val")):
        photograph(rng).save(root / "JPEGImages" / f"{name}.jpg")
        labels = rng.integers(0, 4, (HEIGHT, WIDTH))
        colours = np.array([[0, 0, 0], [128, 0, 0], [0, 64, 200], [9, 9, 9]], np.uint8)
        Image.fromarray(colours[labels]).save(root / "SegmentationClass" / f"{name}.png")
        (root / f"ImageSets/Segmentation/{split}.txt").write_text(f"{name}\n")
        expected[name] = np.where(labels == 3, 255, labels)
    notes = convert_annotations("cvat", root, tmp_path / "out")
    ignored = sum(int((mask == 255).sum()) for mask in expected.values())
    assert notes == [
        "2 images (1 train, 1 val); classes: 0 background, 1 wall, 2 door",
        f"{ignored} x pixel of a colour that labelmap.txt does not name, ignored",
    ]
    assert np.array_equal(mask_of(tmp_path / "out/train", "one"), expected["one"])
    assert np.array_equal(mask_of(tmp_path / "out/val", "two"), expected["two"])


def test_classes_can_be_chosen_and_images_lie_elsewhere(rng, tmp_path):
    root = coco(tmp_path / "coco", rng)
    (tmp_path / "pictures").mkdir()
    for path in root.glob("*.jpg"):
        shutil.move(path, tmp_path / "pictures")
    notes = convert_annotations("coco", root, tmp_path / "out", images=tmp_path / "pictures", classes=["road"])
    assert notes[0] == "2 images; classes: 0 background, 1 road"
    assert "left out: 1 x area of a class that is not chosen, such as water" in notes
    assert set(np.unique(mask_of(tmp_path / "out", "1"))) == {0, 1}


def broken_labelme(rng, root):
    labelme(root / "a.json", [shape("x", [[1, 2], [3, "four"]])], data=encoded(photograph(rng)))


def no_json(rng, root):
    (root / "a.json").write_text("{")


def other_size(rng, root):
    labelme(root / "a.json", [shape("x", corners(1, 1, 5, 5))], data=encoded(photograph(rng, (HEIGHT, 61))))


def no_image(rng, root):
    labelme(root / "a.json", [shape("x", corners(1, 1, 5, 5))], "a.jpg")


def cut_image(rng, root):
    labelme(root / "a.json", [shape("x", corners(1, 1, 5, 5))], "a.jpg")
    photograph(rng).save(root / "a.jpg")
    (root / "a.jpg").write_bytes((root / "a.jpg").read_bytes()[:-400])


def nothing_drawn(rng, root):
    labelme(root / "a.json", [], data=encoded(photograph(rng)))


def two_of_a_name(rng, root):
    for path in ("a_b.json", "a/b.json"):
        labelme(root / path, [shape("x", corners(1, 1, 5, 5))], data=encoded(photograph(rng)))


def yolo_class(rng, root):
    yolo(root, rng, names=["one"])


def yolo_pixels(rng, root):
    (yolo(root, rng) / "labels/train/1.txt").write_text("0 10 20 30 20 30 40")


def yolo_odd(rng, root):
    (yolo(root, rng) / "labels/train/1.txt").write_text("0 .1 .2 .3 .2 .3 .4 .5")


def cvat_rle(rng, root):
    (root / "annotations.xml").write_text(XML.replace("1, 2, 3", "1, 2, 4"))


def cvat_size(rng, root):
    (root / "annotations.xml").write_text(XML.replace('height="40"', 'height="forty"', 1))


def cvat_with(old, new):
    return lambda rng, root: (root / "annotations.xml").write_text(XML.replace(old, new))


def geojson_with(geometry):
    content = {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": geometry}]}
    return lambda rng, root: (root / "a.geojson").write_text(json.dumps(content))


def cvat_colours(rng, root):
    (root / "SegmentationClass").mkdir()
    (root / "labelmap.txt").write_text("wall:1,2\n")


@pytest.mark.parametrize(
    ("format", "spoil", "message"),
    [
        ("labelme", broken_labelme, "a.json: shape 0 is damaged"),
        ("labelme", no_json, "a.json: not a readable JSON file"),
        ("labelme", other_size, "made for an image of 60x40, .*imageData has 61x40"),
        ("labelme", no_image, "a.json: the image a.jpg is not in"),
        ("labelme", cut_image, "a.jpg: corrupt image"),
        ("labelme", nothing_drawn, "nothing is annotated"),
        ("labelme", two_of_a_name, "another image is called a_b"),
        ("labelme", lambda rng, root: None, "no JSON file of labelme"),
        ("coco", lambda rng, root: None, "no annotations.json"),
        ("yolo", lambda rng, root: None, "no data.yaml"),
        ("yolo", yolo_class, "0.txt: line 2 has class 1, but names lists 1"),
        ("yolo", yolo_pixels, "1.txt: line 1 has coordinates outside 0..1"),
        ("yolo", yolo_odd, "1.txt: line 1 is not `class x y"),
        ("cvat", lambda rng, root: None, "neither annotations.xml nor labelmap.txt"),
        ("cvat", cvat_rle, "image a/one.jpg: a damaged mask"),
        ("cvat", cvat_size, "image a/one.jpg: height: 'forty' is not a height or width"),
        ("cvat", cvat_with("10,5;", "nan,5;"), "image a/one.jpg: a damaged polygon .*not a number of pixels"),
        ("cvat", cvat_with('xtl="20"', 'xtl="1e300"'), "image a/one.jpg: a damaged box .*not a number of pixels"),
        ("cvat", cvat_with('rotation="90"', 'rotation="nan"'), "image a/one.jpg: a damaged box"),
        ("cvat", cvat_with('rx="2"', 'rx="inf"'), "image a/one.jpg: a damaged ellipse"),
        ("cvat", cvat_with('left="40"', 'left="inf"'), "image a/one.jpg: a damaged mask"),
        ("cvat", cvat_with('left="40"', 'left="1e300"'), "image a/one.jpg: a damaged mask .*not a number of pixels"),
        ("geojson", geojson_with("POINT (1 2)"), r"a.geojson: a damaged geometry \('POINT"),
        ("geojson", geojson_with({"type": "Polygon", "coordinates": [[[0, 0], [1e300, 0], [1, 1]]]}), "damaged Polyg"),
        ("cvat", cvat_colours, "labelmap.txt: it must map 2 to 255 classes"),
    ],
)
def test_bad_input_is_one_error_and_nothing_is_left(rng, tmp_path, format, spoil, message):
    root = tmp_path / "source"
    root.mkdir()
    spoil(rng, root)
    with pytest.raises(UserError, match=message):
        convert_annotations(format, root, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_mistake_in_an_archive_names_the_archive(rng, tmp_path):
    cvat_rle(rng, tmp_path)
    archive = shutil.make_archive(str(tmp_path / "export"), "zip", tmp_path, "annotations.xml")
    with pytest.raises(UserError, match=f"^{archive}/annotations.xml, image a/one.jpg: a damaged mask"):
        convert_annotations("cvat", archive, tmp_path / "out")
