"""The order of caption tags."""

from dalle_ppo.captions.tags import in_order, named


def test_laion_s_tags_come_first_from_safe_to_unsafe_and_others_by_name():
    assert in_order(["zoo", "NSFW", "UNLIKELY", "art", "NSFW"]) == ["UNLIKELY", "NSFW", "art", "zoo"]
    assert in_order([]) == []


def test_a_missing_tag_has_a_name():
    assert [named(None), named("NSFW")] == ["UNTAGGED", "NSFW"]
