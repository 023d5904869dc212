"""Whatever a user name, password or query is made of, nothing that is shown or written holds it."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neobert_train.config.saved import dump_config
from neobert_train.config.schema import TrainConfig
from neobert_train.urls import hide_credentials, identify_value, show_url, show_value

# Made to be found again: what is between the two may end a URL, a quotation or a line.
SECRET = st.text(st.sampled_from(string.printable), max_size=12).map(lambda s: f"HUSH{s}HUSH")
PRINTED = [character for character in string.printable if character not in string.whitespace]
WORD = st.text(st.sampled_from(PRINTED), max_size=12).map(lambda s: f"HUSH{s}HUSH")
SCHEMES = st.sampled_from(["https", "http", "HTTPS", "ftp", "sftp", "unknown+scheme"])


@settings(deadline=None)
@given(SCHEMES, SECRET, SECRET, SECRET)
def test_a_url_is_shown_without_its_secrets(scheme, user, password, query):
    for url in (
        f"{scheme}://{user}:{password}@host/a/b.parquet?{query}",
        f"{scheme}://{user}@host:80/a/b.parquet?{query}",
        f"{scheme}://host/a/b.parquet?{query}#{password}",
        f"{scheme}://{user}:{password}@host",
    ):
        assert "HUSH" not in show_url(url)
        assert "HUSH" not in show_value(f" {url}")
        assert "HUSH" not in show_value(f"simplecache::{url}")


@settings(deadline=None)
@given(st.sampled_from(["s3", "hf", "gs"]), SECRET, SECRET)
def test_keys_in_the_url_of_an_object_store_are_not_shown(scheme, user, password):
    assert "HUSH" not in show_url(f"{scheme}://{user}:{password}@bucket/key?versionId=3&a={user}")


@settings(max_examples=30, deadline=None)
@given(SCHEMES, SECRET, SECRET, SECRET)
def test_no_setting_is_written_with_secrets(scheme, user, password, query):
    config = TrainConfig()
    url = f"{scheme}://{user}:{password}@host/a/b.parquet?{query}"
    config.data.paths = ["a.txt", url]
    config.init_from = url
    config.logging.wandb_name = f"of {url}"
    assert "HUSH" not in dump_config(config)


@settings(deadline=None)
@given(WORD, SECRET.filter(lambda text: "\n" not in text and "\r" not in text), WORD)
def test_free_text_is_cleaned_to_the_last_at_of_the_line(user, password, query):
    if "/" in user:
        user = user.replace("/", "-")
    text = (
        f"cannot read 'https://{user.replace('@', '-')}:{password}@host/a.txt?{query}', and so\non"
    )
    assert "HUSH" not in hide_credentials(text)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://u:p@host:80/a/b.txt?sig=x#f", "https://host:80/a/b.txt"),
        ("https://host?sig=x", "https://host"),
        ("https://u:p/w@host/a", "https://(hidden)@host/a"),
        ("https://u:1/w@host/a", "https://(hidden)@host/a"),
        ("https://u:p?w@host/a", "https://(hidden)"),
        ("https://u:p\"w'@host/a", "https://host/a"),
        ("https://host/a?mail=x@y", "https://(hidden)"),
        ("http://[::1]:80/a?b", "http://[::1]:80/a"),
        ("http://[::1/a", "http://(hidden)"),
        ("s3://bucket/a-?.parquet", "s3://bucket/a-?.parquet"),
        ("s3://bucket/year=2020/a-?.parquet", "s3://bucket/year=2020/a-?.parquet"),
        ("s3://bucket/a#1@2.parquet", "s3://bucket/a#1@2.parquet"),
        ("s3://bucket/a?versionId=x", "s3://bucket/a"),
        ("s3://KEY:se/cret@bucket/a", "s3://(hidden)@bucket/a"),
        ("hf://datasets/o/n@main/a", "hf://datasets/o/n@main/a"),
    ],
)
def test_what_is_left_of_a_url(url, shown):
    assert show_url(url) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("not https://u:p@host/a?b=c, but", "not https://host/a"),
        ("'https://host/a': HTTP 403", "'https://host/a': HTTP 403"),
        ("(https://host:8000): gone.", "(https://host:8000): gone."),
        ("hf://datasets/o/n@main/a and hf://datasets/o/m@main/b", None),
        ("a://b", None),
        ("no URL: a@b.c?d=e", None),
    ],
)
def test_the_rest_of_a_free_text_stays(text, shown):
    assert hide_credentials(text).startswith(shown or text)


def test_a_long_text_takes_no_time():
    for text in ("a" * 1_000_000, "a://" * 50_000, "a:" * 500_000, "a://b" + ")" * 500_000):
        assert hide_credentials(text)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (
            "https://u:p@host/a?X-Amz-Signature=1&X-Amz-Date=2",
            "https://v:q@host/a?X-Amz-Date=3",
            True,
        ),
        ("https://host/a?sv=1&sig=2&id=7", "https://host/a?sv=3&sig=4&id=7", True),
        ("https://host/a?sv=1&sig=2&id=7", "https://host/a?sv=3&sig=4&id=8", False),
        ("https://host/get?id=1", "https://host/get?id=2", False),
        ("https://host/get?1", "https://host/get?2", False),
        ("https://host/a", "https://host/b", False),
        ("s3://bucket/a-?.txt", "s3://bucket/b-?.txt", False),
        ("texts/a?.txt", "texts/b?.txt", False),
    ],
)
def test_what_urls_are_of_the_same_content(one, other, same):
    assert (identify_value(one) == identify_value(other)) == same
    assert identify_value("texts/*.txt") == "texts/*.txt"
