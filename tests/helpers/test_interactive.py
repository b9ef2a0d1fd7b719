"""The interactive figure: its two lives agree, and it refuses what would make a bad figure."""

import base64
import html
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from helpers.interactive import MAX_FRAMES, Explorable


def draw(figure, *values):
    axis = figure.subplots()
    axis.plot([0, 1], [0, sum(v if isinstance(v, int) else len(v) for v in values)])
    axis.set_ylim(0, 20)


def make(values=(1, 2, 3), label="layers", draw=draw, **options):
    defaults = {"alt": "a line", "caption": "It rises.", "key": "line", "size": (3, 2)}
    return Explorable(draw, values, label, **{**defaults, **options})


def static(explorable):
    """Frames and descriptions of the book's figure, as its script gets them."""
    page = explorable._repr_mimebundle_()[0]["text/html"]
    frames, alts = re.search(r"\}\)\((\[.*?\]), (\[.*\])\);\n</script>", page, re.S).groups()
    return page, json.loads(frames), json.loads(alts)


def live(explorable):
    return re.search(r'<img src="([^"]*)" alt="([^"]*)"', explorable.children[-1].value).groups()


@pytest.mark.parametrize(
    "values, label",
    [((1, 2, 3), "layers"), (("VGG", "ResNet"), "network"), (((3, 5, 7), (1, 2)), ("kernel size", "layers"))],
)
def test_live_figure_equals_the_books_frame_for_every_value(values, label):
    explorable = make(values, label)
    _, frames, alts = static(explorable)
    sliders = explorable.children[:-1]
    grid = np.ndindex(*(len(slider.options) for slider in sliders))
    for index, frame, alt in zip(grid, frames, alts, strict=True):
        for slider, i in zip(sliders, index, strict=True):
            slider.index = i
        assert live(explorable) == (frame, html.escape(alt))
    assert len(set(frames)) == len(frames), "the sliders do not change the picture"


def test_both_lives_begin_where_they_are_told():
    explorable = make(((3, 5, 7), (1, 2)), ("kernel size", "layers"), start=(5, 2))
    page, frames, alts = static(explorable)
    assert [slider.value for slider in explorable.children[:-1]] == [5, 2]
    assert re.findall(r'value="(\d)" autocomplete', page) == ["1", "1"]
    assert re.findall(r"<output[^>]*>(\w+)<", page) == ["5", "2"]
    assert live(explorable) == (frames[3], alts[3]) and page.index(frames[3]) < page.index("<input")


def test_each_frame_is_drawn_once():
    drawn = []
    explorable = make(draw=lambda figure, n: (drawn.append(n), draw(figure, n)))
    static(explorable)
    explorable.children[0].index = 2
    explorable._repr_mimebundle_()
    assert sorted(drawn) == [1, 2, 3]


def test_frames_have_twice_the_pixels_of_the_page_and_one_size():
    page, frames, _ = static(make(size=(4, 2)))
    sizes = {Image.open(io.BytesIO(base64.b64decode(frame.split(",")[1]))).size for frame in frames}
    assert sizes == {(2 * 384, 2 * 192)}
    assert 'width="384"' in page


def test_a_sentence_gets_the_values_and_a_function_is_asked():
    assert static(make())[2] == ["a line (layers 1)", "a line (layers 2)", "a line (layers 3)"]
    assert static(make(alt=lambda n: f"slope {n}"))[2] == ["slope 1", "slope 2", "slope 3"]


def test_fragment_needs_nothing_from_elsewhere_and_cannot_be_broken_out_of():
    page, _, alts = static(make(alt='</script><b a="1">', caption="a < b"))
    assert "http" not in page and "%ID%" not in page
    assert page.count("</script>") == 1 and "<b a=" not in page and "a &lt; b" in page
    assert alts[0] == '</script><b a="1"> (layers 1)'


def test_every_slider_has_a_name_and_a_value_in_words():
    page = static(make(((3, 5), ("few", "many")), ("kernel size", "layers")))[0]
    inputs = re.findall(r"<input[^>]*>", page)
    assert len(inputs) == 2
    for tag, text in zip(inputs, ("3", "few"), strict=True):
        identity = re.search(r'id="([^"]+)"', tag)[1]
        assert f'<label for="{identity}">' in page and f'aria-valuetext="{text}"' in tag


def test_paper_gets_a_contact_sheet():
    sheet = Image.open(io.BytesIO(base64.b64decode(make(range(1, 9))._repr_mimebundle_()[0]["image/png"])))
    assert sheet.format == "PNG"
    halves = [half for rows in np.array_split(np.asarray(sheet.convert("L")), 2) for half in np.array_split(rows, 2, 1)]
    assert all(half.std() > 5 for half in halves), "a part of the sheet is blank"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"values": range(MAX_FRAMES + 1)}, f"{MAX_FRAMES + 1} frames"),
        ({"values": (range(7), range(6)), "label": ("a", "b")}, "7 x 6 = 42 frames"),
        ({"values": ()}, "0 frames"),
        ({"values": ((1, 2), (3, 4)), "label": ("only one",)}, "1 labels for 2"),
        ({"values": ((1,), (2,), (3,)), "label": ("a", "b", "c")}, "3 labels for 3"),
        ({"alt": " "}, "alt is empty"),
        ({"key": "Two words"}, "key='Two words'"),
        ({"start": 9}, "start=9 is none"),
    ],
)
def test_unusable_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(**options)


def test_matplotlibs_global_state_stays_as_it_was():
    import matplotlib
    from matplotlib import pyplot

    with matplotlib.rc_context({"font.size": 13.5, "savefig.bbox": "tight"}):
        before = dict(matplotlib.rcParams)
        static(make())
        assert dict(matplotlib.rcParams) == before and not pyplot.get_fignums()
