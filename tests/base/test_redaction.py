"""What is secret, told by the environment or by its shape, does not survive; everything else does."""

import json
import logging
import os
import pwd
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpt_parallel.base.redaction import redact, redact_log, redact_tree
from gpt_parallel.schema.run import ExecutionSpec
from tests.support.factories import rank_report, run_spec

HF_SHAPE = "hf_" + "aB3" * 11


@pytest.fixture
def user(monkeypatch, tmp_path):
    """An environment that is known: a home directory with nothing in it, and no other variable."""
    home = tmp_path / "home" / "me"
    home.mkdir(parents=True)
    for name in list(os.environ):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    return monkeypatch


@pytest.mark.parametrize(
    "name",
    [
        *("HF_TOKEN", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "MYSQL_PWD", "OPENAI_API_KEY"),
        *("GOOGLE_CREDENTIAL", "BASIC_AUTH", "wandb_apikey", "SIGNING_KEY", "DB_PASS", "SESSION_COOKIE"),
    ],
)
def test_values_of_variables_with_secret_names_are_hidden(user, name):
    user.setenv(name, "correct/horse+battery")

    assert redact("it said correct/horse+battery.") == "it said ***."


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("PWD", "/somewhere"), ("GIT_AUTHOR_NAME", "somebody"), ("TOKENIZERS_PARALLELISM", "false, please")),
        *(("HF_TOKEN_PATH", "/somewhere"), ("SSH_AUTH_SOCK", "/somewhere"), ("MAX_TOKENS", "1000000")),
        *(("HF_TOKEN", "short"), ("HF_TOKEN", ""), ("HF_TOKEN", "********"), ("MONKEY", "business")),
    ],
)
def test_other_values_are_not(user, name, value):
    user.setenv(name, value)

    assert redact(f"it said {value} to somebody") == f"it said {value} to somebody"


def test_a_secret_is_known_however_it_is_written(user):
    secret = "p\"a\\s's /wörd"
    user.setenv("SERVICE_PASSWORD", secret)

    for written in (secret, repr({"x": secret}), json.dumps(secret), "p%22a%5Cs%27s%20%2Fw%C3%B6rd"):
        assert "rd" not in redact(written)


def test_each_line_of_a_secret_is_one(user):
    user.setenv("DEPLOY_PRIVATE_KEY", "first line\nsecond line\n")

    assert redact("  first line\n  second line") == "  ***\n  ***"


def test_the_longer_of_two_secrets_leaves_no_end(user):
    user.setenv("A_TOKEN", "abcdef")
    user.setenv("B_TOKEN", "abcdefghij")

    assert redact("abcdefghij abcdef") == "*** ***"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://user:pass@proxy:3128/x", "http://***@proxy:3128/x"),
        ("git+ssh://tok3n@host/x.git", "git+ssh://***@host/x.git"),
        ("https://user:p@ss@host", "https://***@host"),
        ("'https://a:b@c', https://d:e@f", "'https://***@c', https://***@f"),
        ("https://host/@me and me@host", "https://host/@me and me@host"),
        ("https://***@host", "https://***@host"),
    ],
)
def test_credentials_in_addresses_are_hidden(user, text, expected):
    assert redact(text) == expected


def test_a_password_of_an_address_in_the_environment_is_a_secret_by_itself(user):
    user.setenv("https_proxy", "http://user:s3cret%2Fpart@proxy:3128")

    assert redact("password s3cret%2Fpart, s3cret/part") == "password ***, ***"


@pytest.mark.parametrize(
    "token",
    [
        *(HF_SHAPE, "ghp_" + "x1" * 18, "gho_" + "x1" * 18, "github_pat_" + "1A_b" * 8, "AKIA" + "Q7" * 8),
        *("glpat-" + "x-1" * 7, "xoxb-1234567890-abc", "eyJhbGciOiJI.eyJzdWIiOiIx.abc-_", "sk-" + "a1" * 12),
        "AIza" + "Sy-_7" * 7,
    ],
)
def test_tokens_are_known_by_their_shape(user, token):
    assert redact(f"a\\n{token}, b") == "a\\n***, b"
    assert redact(f"Authorization: Bearer {token}") == "Authorization: Bearer ***"


@pytest.mark.parametrize(
    "written", ["{}", "Authorization: {}", "'authorization': '{}'", '\\"Authorization\\": \\"{}\\"']
)
def test_credentials_of_basic_authorization_are_hidden(user, written):
    header = written.format("Basic dXNlcjpwYXNz=")

    assert redact(header) == (header if written == "{}" else written.format("Basic ***"))


@pytest.mark.parametrize("kind", ["", "RSA ", "OPENSSH "])
def test_private_keys_are_hidden_whole_and_cut_off(user, kind):
    body = f"-----BEGIN {kind}PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nMIIEvQ+/\nabc==\n"
    whole = f"{body}-----END {kind}PRIVATE KEY-----"

    assert redact(f"a {whole} b") == "a *** b"
    assert redact(json.dumps({"x": whole, "y": 1})) == '{"x": "***", "y": 1}'
    assert redact(f"a {body}") == "a ***"
    assert redact(f"a\n{whole}\nb\n{whole}\n") == "a\n***\nb\n***\n"
    assert redact(body.replace("PRIVATE", "PUBLIC")) == body.replace("PRIVATE", "PUBLIC")


def test_ordinary_words_have_no_such_shape(user):
    text = "hf_hub_download, ghp_short, sk-learn, AKIA, AIza, the bearer of news, Basic training, task-parallel, eyJ"

    assert redact(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{home}", "~"),
        ("{home}/x, {home}.", "~/x, ~."),
        ("'{home}' PATH={home}/bin:{home}/.local", "'~' PATH=~/bin:~/.local"),
        ("file://{home}/x\\n{home}/y -I{home}/z", "file://~/x\\n~/y -I~/z"),
        ("{home}2 {home}-old {home}.old /mnt{home}", "{home}2 {home}-old {home}.old /mnt{home}"),
    ],
)
def test_the_home_directory_is_a_tilde_where_a_path_begins(user, tmp_path, text, expected):
    home = tmp_path / "home" / "me"

    assert redact(text.format(home=home)) == expected.format(home=home)


@pytest.mark.parametrize("home", ["", "/", "//", "relative"])
def test_what_is_no_home_directory_is_not_looked_for(user, home):
    user.setenv("HOME", home)

    assert redact("/usr/lib and relative/x") == "/usr/lib and relative/x"


def test_the_home_directory_has_several_names(user, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "home" / "me")
    user.setenv("HOME", f"{tmp_path}/link/")
    of_the_system = pwd.getpwuid(os.getuid()).pw_dir

    assert redact(f"{tmp_path}/link/a {tmp_path}/home/me/b {of_the_system}/c") == "~/a ~/b ~/c"


@pytest.mark.parametrize("variable", ["HF_TOKEN_PATH", "HF_HOME", "XDG_CACHE_HOME", None])
def test_the_hub_s_token_file_is_read_where_the_hub_s_client_does(user, tmp_path, variable):
    path = {
        "HF_TOKEN_PATH": tmp_path / "t",
        "HF_HOME": tmp_path / "token",
        "XDG_CACHE_HOME": tmp_path / "huggingface" / "token",
        None: tmp_path / "home" / "me" / ".cache" / "huggingface" / "token",
    }[variable]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("an-old-fashioned-token\n")
    if variable:
        user.setenv(variable, str(path if variable == "HF_TOKEN_PATH" else tmp_path))

    assert redact("<an-old-fashioned-token>") == "<***>"


@pytest.mark.timeout(20)
def test_a_token_file_that_is_none_is_passed_over(user, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_text("x" * 5000)
    for name in ("pipe", "large", "absent", "", "nul\\0"):
        user.setenv("HF_TOKEN_PATH", str(tmp_path / name))
        assert redact("x" * 5000) == "x" * 5000


def test_a_change_of_the_environment_counts_at_once(user):
    assert redact("the new secret") == "the new secret"
    user.setenv("NEW_TOKEN", "new secret")
    assert redact("the new secret") == "the ***"


def test_trees_keep_their_shape(user):
    user.setenv("HF_TOKEN", "s3cret")

    assert redact_tree({"s3cret": ["s3cret", 1, 2.5, None, True], "b": ({"c": "a s3cret"},)}) == {
        "***": ["***", 1, 2.5, None, True],
        "b": ({"c": "a ***"},),
    }


def test_a_model_s_own_words_are_no_secrets(user, tmp_path):
    user.setenv("SILLY_PASSWORD", "float32")
    execution = ExecutionSpec(device="cpu", dtype="float32", backend="gloo", log_dir=f"{tmp_path}/home/me/float32")
    spec = run_spec(execution=execution)

    redacted = redact_tree(spec)

    assert redacted.execution == execution.model_copy(update={"log_dir": "~/***"})
    assert type(spec).model_validate_json(redacted.model_dump_json()) == redacted
    assert spec.execution == execution


def test_the_names_in_a_model_are_no_secrets(user):
    user.setenv("DB_PASSWORD", "rounds")
    report = rank_report(phase_seconds={"rounds": 1.5}, device_name="rounds")

    redacted = redact_tree({"rounds": (report,)})

    assert redacted == {"***": (report.placed(device_name="***"),)}


def test_what_is_logged_is_redacted_for_every_handler(user, caplog):
    user.setenv("HF_TOKEN", "s3cret")
    redact_log()
    redact_log()

    logging.getLogger("gpt_parallel").warning("%s and %d", "a s3cret", 7)

    assert caplog.messages == ["a *** and 7"]


SECRETS = ["abcdef", "abc***", "://x@y", "~~~~~~", "/home/", "Bearer", "hf_abc"]
PIECES = st.sampled_from([*SECRETS, "/home/me", "/h*", "://", "@", "*", "~", "/", ":", "Bearer ", "hf_", "a" * 20, " "])
TEXTS = st.lists(PIECES | st.text(max_size=3), max_size=12).map("".join)
ENVIRONMENTS = st.fixed_dictionaries(
    {"HOME": st.sampled_from(["/home/me", "/h*", "/~", "/a", "/home/me/abcdef"])},
    optional={"A_TOKEN": st.sampled_from(SECRETS), "B_SECRET": st.sampled_from(SECRETS)},
)


@given(TEXTS, ENVIRONMENTS)
@example("abcabcdef", {"HOME": "/a", "A_TOKEN": "abcdef", "B_SECRET": "abc***"})
def test_what_is_redacted_stays_as_it_is(text, environment):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        once = redact(text)

        assert redact(once) == once
        secrets = {value for name, value in environment.items() if name != "HOME"}
        assert not [secret for secret in secrets if secret in once]


@given(st.recursive(st.none() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)))
def test_any_json_can_be_redacted(value):
    json.dumps(redact_tree(value))


def test_megabytes_take_no_time(user):
    user.setenv("HF_TOKEN", "s3cret")
    text = "rank 0: a line of a log with /a/path and a://b.c, s3cret or not, and words\n" * 60_000

    begin = time.process_time()
    redacted = redact(text)

    assert redacted.count("***") == 60_000
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    "piece",
    [
        *("eyJ", "eyJaaaaaaaa.", "-----BEGIN PRIVATE KEY-----", "-----BEGIN PRIVATE KEY-----a-b", "://", "Bearer "),
        "authorization: ",
    ],
)
def test_no_text_takes_long(user, piece):
    """180 kB of one beginning after the other took seven seconds."""
    text = piece * (180_000 // len(piece))

    begin = time.process_time()
    redact(text)

    assert time.process_time() - begin < 2
