"""Captions of the hub: the real client against a hub on this machine that refuses, stalls and trickles."""

import time

import pyarrow.parquet as pq
import pytest
from fake_hub import FakeHub
from laion_tables import everything, laion_table, open_source, texts

from dalle_ppo.captions.overview import as_text, look_at
from dalle_ppo.captions.sources import hub as caption_hub
from dalle_ppo.captions.sources.hub import within

SOURCE = "hub:laion/laion400m"
HALVES = {"NSFW": 0.5, "OTHER": 0.5}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Two shards in a folder, as a data set that needs the token `secret`."""
    from huggingface_hub import HfFileSystem, constants

    folder = tmp_path / "dataset"
    folder.mkdir()
    for part in range(2):
        pq.write_table(laion_table(900, part * 900), folder / f"part-{part:05d}-c000.snappy.parquet")
    (folder / "README.md").write_text("a card\n")
    hub = FakeHub(folder, "laion/laion400m", "secret")
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "secret")
    HfFileSystem.clear_instance_cache()
    yield hub
    hub.close()


def cache(hub, tmp_path, names):
    """Files in the hub's cache, as a download leaves them."""
    folder = tmp_path / "cache" / "datasets--laion--laion400m"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("a" * 40)
    for name in names:
        file = folder / "snapshots" / ("a" * 40) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes((hub.folder / name).read_bytes())


def downloaded(hub) -> list[str]:
    return sorted({path.rsplit("/", 1)[1] for path, _ in hub.requests if "/resolve/" in path})


def test_files_of_the_hub_give_the_captions_of_local_files(hub):
    streamed = open_source(SOURCE, everything())
    local = open_source(str(hub.folder), everything(), HALVES)
    assert streamed.next_batch(40) == local.next_batch(40)
    assert streamed.metrics()["captions/share_NSFW"] == 0.5, "half, unless other shares are asked for"
    named = open_source(f"{SOURCE}@main", everything())
    named.load_state_dict(streamed.state_dict())
    local.load_state_dict(streamed.state_dict())
    assert streamed.next_batch(9) == named.next_batch(9) == local.next_batch(9)


def test_files_in_the_cache_are_not_downloaded(hub, tmp_path):
    names = [f"part-{part:05d}-c000.snappy.parquet" for part in range(2)]
    cache(hub, tmp_path, names[:1])
    both = open_source(SOURCE, everything(), {"OTHER": 1.0}).next_batch(1700)
    assert downloaded(hub) == names[1:]
    assert len(set(texts(both))) == 1700


def test_without_a_network_the_cache_is_read(hub, tmp_path, monkeypatch):
    from huggingface_hub import constants

    names = [f"part-{part:05d}-c000.snappy.parquet" for part in range(2)]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="laion/laion400m"):
        open_source(SOURCE, everything())
    cache(hub, tmp_path, names)
    drawn = open_source(SOURCE, everything()).next_batch(40)
    assert drawn == open_source(str(hub.folder), everything(), HALVES).next_batch(40)
    assert hub.requests == []


def test_a_hub_that_refuses_is_one_line(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "wrong-one")
    with pytest.raises(ValueError, match=r"laion/laion400m .*HF_TOKEN") as error:
        open_source(SOURCE, everything())
    assert "\n" not in str(error.value) and "wrong-one" not in str(error.value)


def refused(hub, source=SOURCE) -> str:
    """The error of opening a source, found without opening a file."""
    with pytest.raises(ValueError) as error:
        open_source(source, everything())
    assert "\n" not in str(error.value) and not downloaded(hub)
    return str(error.value)


def test_a_data_set_that_is_gone_names_what_took_its_place(hub):
    hub.repo = "laion/another"
    for source in (SOURCE, "hub:LAION/laion400m@main"):
        error = refused(hub, source)
        assert "is not on the hub" in error and "use hub:laion/relaion400m" in error and "HF_TOKEN" in error
    error = refused(hub, "hub:nobody/nothing")
    assert "nobody/nothing is not on the hub" in error and "folder with its parquet files" in error
    assert "relaion" not in error


def test_a_data_set_that_was_taken_down_names_what_took_its_place(hub):
    hub.disabled = True
    error = refused(hub)
    assert "laion/laion400m has been disabled" in error and "use hub:laion/relaion400m" in error


def test_a_gated_data_set_says_where_its_terms_are(hub):
    hub.gated, hub.repo = True, "laion/relaion400m"
    error = refused(hub, "hub:laion/relaion400m")
    assert "https://huggingface.co/datasets/laion/relaion400m and set HF_TOKEN" in error


def test_a_gated_data_set_in_the_cache_needs_no_access(hub, tmp_path):
    cache(hub, tmp_path, [f"part-{part:05d}-c000.snappy.parquet" for part in range(2)])
    hub.gated = True
    assert open_source(SOURCE, everything()).next_batch(1)


def test_a_renamed_data_set_is_refused_with_its_new_name(hub):
    """What the hub forwards to may hold other captions: re-LAION is not LAION."""
    hub.renamed_from = "laion/laion-old"
    assert "laion/laion-old is called laion/laion400m" in refused(hub, "hub:laion/laion-old")
    hub.renamed_from = "LAION/Laion400M"
    assert open_source("hub:LAION/Laion400M", everything()).next_batch(1), "only other capitals"


def test_a_revision_that_does_not_exist(hub):
    assert "no revision v9" in refused(hub, f"{SOURCE}@v9")


@pytest.mark.parametrize(
    "names", [("caption", "NSFW"), ("caption", "nsfw"), ("Caption", "Nsfw"), ("text", "TAG")]
)
def test_columns_in_another_case_are_found(hub, names):
    """re-LAION-400M calls its captions `caption`."""
    for file in hub.folder.glob("*.parquet"):
        table = pq.read_table(file)
        renamed = [{"TEXT": names[0], "NSFW": names[1], "URL": "url"}.get(c, c) for c in table.column_names]
        pq.write_table(table.rename_columns(renamed), file)
    drawn = open_source(SOURCE, everything()).next_batch(200)
    assert all(record.text.endswith((record.tag, "None")) for record in drawn)
    assert sum(record.tag == "NSFW" for record in drawn) == 100


def test_without_tags_captions_are_taken_as_they_come(hub):
    """Half of the captions tagged NSFW is no default for a data set without tags, such as re-LAION-2B."""
    for file in hub.folder.glob("*.parquet"):
        pq.write_table(pq.read_table(file, columns=["URL", "TEXT"]), file)
    assert {record.tag for record in open_source(SOURCE, everything()).next_batch(100)} == {"UNTAGGED"}


def test_if_no_tags_are_read_captions_are_taken_as_they_come(hub):
    drawn = open_source(SOURCE, everything(), tag_column="").next_batch(100)
    assert {record.tag for record in drawn} == {"UNTAGGED"}


@pytest.mark.parametrize(
    "thresholds, share", [({"UNLIKELY": 0, "NSFW": 0.9}, 0.5), ({"low": 0, "high": 0.9}, None)]
)
def test_tags_from_scores_have_the_shares_of_tags(hub, thresholds, share):
    """re-LAION-2B has scores, `punsafe`; thresholds without NSFW make no tag that could have half."""
    for file in hub.folder.glob("*.parquet"):
        table = pq.read_table(file, columns=["TEXT"])
        scores = [0.95 if row % 10 == 0 else 0.1 for row in range(table.num_rows)]
        pq.write_table(table.append_column("punsafe", [scores]), file)
    source = open_source(SOURCE, everything(), tag_thresholds=thresholds)
    source.next_batch(100)
    assert source.metrics().get("captions/share_NSFW") == share


def test_a_damaged_first_file_is_named_or_skipped(hub):
    first = hub.folder / "part-00000-c000.snappy.parquet"
    first.write_bytes(first.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"part-00000\S+ of laion/laion400m could not be read") as error:
        open_source(SOURCE, everything())
    assert "\n" not in str(error.value)
    source = open_source(SOURCE, everything(skip_bad_files=True))
    with pytest.warns(UserWarning, match="file skipped"):
        seen = as_text(look_at(source.contents, everything(skip_bad_files=True)))
    assert seen.startswith(
        "captions: no file could be read; 1 more are not opened yet\n  left out: part-00000"
    )
    with pytest.warns(UserWarning, match="file skipped"):
        assert len(source.next_batch(50)) == 50


def test_a_data_set_without_parquet_files_is_named(hub):
    for file in hub.folder.glob("*.parquet"):
        file.unlink()
    with pytest.raises(ValueError, match=r"laion/laion400m has no parquet file"):
        open_source(SOURCE, everything())


@pytest.mark.parametrize("where", ["/tree/", "/resolve/"])
def test_a_hub_that_stalls_is_one_line_within_the_time_limit(hub, monkeypatch, where):
    monkeypatch.setattr(caption_hub, "HUB_SECONDS", 0.5)
    hub.stall_on = where
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"no answer within 0\.5 seconds") as error:
        open_source(SOURCE, everything()).next_batch(1)
    assert time.monotonic() - started < 30 and "\n" not in str(error.value)


def test_a_shard_that_stalls_is_skipped_with_a_count_where_that_is_wanted(hub, monkeypatch):
    source = open_source(SOURCE, everything(skip_bad_files=True), {"OTHER": 1.0})
    monkeypatch.setattr(caption_hub, "HUB_SECONDS", 0.5)
    hub.stall_on = "part-00001"
    with pytest.warns(UserWarning, match=r"file skipped: .*part-00001.*no answer within 0\.5 seconds"):
        drawn = source.next_batch(1000)
    assert {int(text.split()[1]) // 900 for text in texts(drawn)} == {0}
    assert source.metrics()["captions/skipped_bad_files"] >= 1


def test_a_hub_that_trickles_is_no_silent_hang(hub, monkeypatch):
    """Every byte comes within the client's own limit, the file would take hours."""
    source = open_source(SOURCE, everything())
    monkeypatch.setattr(caption_hub, "HUB_SECONDS", 0.5)
    hub.trickle = True
    with pytest.raises(ValueError, match=r"part-0000.*no answer within 0\.5 seconds"):
        source.next_batch(1)


def test_a_stalled_run_goes_on_where_it_stood(hub, monkeypatch):
    source = open_source(SOURCE, everything(), {"OTHER": 1.0})
    undisturbed = open_source(str(hub.folder), everything(), {"OTHER": 1.0})
    assert source.next_batch(600) == undisturbed.next_batch(600)
    monkeypatch.setattr(caption_hub, "HUB_SECONDS", 0.5)
    hub.stall_on = "/resolve/"
    with pytest.raises(ValueError, match="no answer"):
        source.next_batch(1000)
    monkeypatch.setattr(caption_hub, "HUB_SECONDS", 60.0)
    hub.stall_on = None
    again = open_source(SOURCE, everything(), {"OTHER": 1.0})
    again.load_state_dict(source.state_dict())
    assert again.next_batch(200) == source.next_batch(200)


def test_a_hub_that_refuses_in_mid_run_is_one_line_and_goes_on_when_it_relents(hub):
    source = open_source(SOURCE, everything(), {"OTHER": 1.0})
    undisturbed = open_source(str(hub.folder), everything(), {"OTHER": 1.0})
    assert source.next_batch(600) == undisturbed.next_batch(600)
    hub.token = "withdrawn"
    with pytest.raises(ValueError, match=r"part-0000.*401") as error:
        source.next_batch(1000)
    assert "\n" not in str(error.value) and "secret" not in str(error.value)
    hub.token = "secret"
    resumed = open_source(SOURCE, everything(), {"OTHER": 1.0})
    resumed.load_state_dict(source.state_dict())
    assert resumed.next_batch(200) == source.next_batch(200)


def test_a_column_missing_on_the_hub_is_named_with_those_found(hub):
    source = open_source(SOURCE, everything(), column="CAPTION")
    with pytest.raises(ValueError, match=r"part-0000.*no column 'CAPTION'.*SAMPLE_ID, URL, TEXT") as error:
        source.next_batch(1)
    assert "\n" not in str(error.value)


def test_within_hands_over_results_and_errors():
    assert within(5, lambda: 3) == 3
    with pytest.raises(KeyError):
        within(5, lambda: {}[1])
    with pytest.raises(TimeoutError, match="own"):
        within(5, lambda: (_ for _ in ()).throw(TimeoutError("own")))
    with pytest.raises(TimeoutError, match="within 0"):
        within(0.05, lambda: time.sleep(2))
