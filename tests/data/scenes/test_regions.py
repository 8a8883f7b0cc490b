"""Labels of an image's regions: what is there, and nothing else."""

import pytest

from uae_jax.data.config import ScenesConfig
from uae_jax.data.scenes import PLACED_REGIONS, REGIONS, Scene, SceneObject, sample_scene, write_regions
from uae_jax.data.scenes.regions import ROWS, SEPARATOR
from uae_jax.data.sources.scenes import ScenesSource


def labels(scene):
    return write_regions(scene).split(SEPARATOR)


def thing(x, y, radius=6 / 64, shape="square", fill="solid"):
    return SceneObject(shape, "red", "small", fill, x, y, radius)


def test_an_object_is_named_where_it_is_and_the_background_elsewhere():
    found = labels(Scene("sky over sand", (thing(0.125, 0.125),)))  # the middle of the first region; reaches 5.1 px
    assert found[0] == "small solid red square"
    assert found[1:8] == ["sky"] * 7 and found[8:] == ["sand"] * 8


def test_a_label_may_say_where_its_object_stands():
    found = write_regions(Scene("white", (thing(0.125, 0.125),)), placed=True).split(SEPARATOR)
    assert found[:2] == ["small solid red square top left", "white"]


def test_an_object_on_an_edge_is_named_on_both_sides():
    found = labels(Scene("white", (thing(0.25, 0.125),)))
    assert [i for i, label in enumerate(found) if label != "white"] == [0, 1]


def test_less_than_three_pixels_are_not_worth_naming():
    # A square of radius 6 px reaches 5.1 px: with its centre 4.9 px left of the edge, 0.2 x 10.2 px lie beyond.
    found = labels(Scene("white", (thing((16 - 4.9) / 64, 0.125),)))
    assert [i for i, label in enumerate(found) if label != "white"] == [0]


def test_the_larger_part_names_a_region_that_two_share():
    left, right = thing(14 / 64, 0.125), thing(29 / 64, 0.125, shape="circle")
    found = labels(Scene("white", (left, right)))
    assert found[1] == "small solid red circle"
    assert found == labels(Scene("white", (right, left)))  # whatever their order


def test_labels_of_a_sampled_scene_name_its_objects_and_no_others():
    for index in range(200):
        scene = sample_scene((3, index))
        found = labels(scene)
        assert len(found) == ROWS * ROWS
        wanted = {f"{item.size} {item.fill} {item.colour} {item.shape}" for item in scene.objects}
        assert wanted & set(found) and {label for label in found if " " in label} <= wanted


def test_the_source_offers_them_as_a_field():
    source = ScenesSource(ScenesConfig(count=3, levels=("tag", REGIONS)), (REGIONS,))
    texts = source[2].captions[REGIONS]
    assert list(texts) == [write_regions(source.scene(2))]  # there is one wording only
    placed = ScenesSource(ScenesConfig(count=3, levels=(PLACED_REGIONS,)))[2].captions[PLACED_REGIONS]
    assert list(placed) == [write_regions(source.scene(2), placed=True)]
    with pytest.raises(ValueError, match="regions"):
        ScenesSource(ScenesConfig(levels=("region",)))
