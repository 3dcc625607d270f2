"""Where settings come from, which one wins, and what a mistake says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from infra.settings.model import Settings
from infra.settings.sources import Origin, SettingsError, load_settings, origins

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def writer(text: str) -> Path:
        file = tmp_path / "nightschool.toml"
        file.write_text(text)
        return file

    return writer


def refusal(**arguments: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(**{"environ": {}, **arguments})
    return str(caught.value)


def origin(key: str, **arguments: Any) -> Origin:
    found = [each for each in origins(**{"environ": {}, **arguments}) if each.key == key]
    assert len(found) == 1
    return found[0]


class TestPrecedence:
    def test_defaults_without_any_source(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert load_settings(environ={}) == Settings()

    def test_each_source_over_the_next(self, write: Write) -> None:
        file = write("[gateway]\nport = 1\nhost = 'file'\nmax_in_flight = 3\n")
        loaded = load_settings(
            file,
            {"NIGHTSCHOOL_GATEWAY__PORT": "2", "nightschool_gateway__host": "variable"},
            {"gateway.port": 4},
        )
        assert (loaded.gateway.port, loaded.gateway.host) == (4, "variable")
        assert loaded.gateway.max_in_flight == 3
        assert loaded.engine == Settings().engine

    def test_the_file_of_the_working_directory_or_the_variable(
        self, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = write("[gateway]\nport = 1\n")
        monkeypatch.chdir(tmp_path)
        assert load_settings(environ={}).gateway.port == 1
        other = tmp_path / "other.toml"
        other.write_text("[gateway]\nport = 2\n")
        environ = {"NIGHTSCHOOL_CONFIG": str(other)}
        assert load_settings(environ=environ).gateway.port == 2
        assert load_settings(file, environ).gateway.port == 1

    def test_the_process_environment_is_read_when_none_is_given(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("NIGHTSCHOOL_GATEWAY__PORT", "77")
        assert load_settings().gateway.port == 77

    def test_lists_tables_secrets_and_the_night_s_short_names(self) -> None:
        loaded = load_settings(
            environ={
                "NIGHTSCHOOL_ROLLOUT__STEPS": "[0.2, 0.4]",
                "NIGHTSCHOOL_HOOKS__SECRETS__CI": "whsec_x",
                "NIGHTSCHOOL_ANONYMIZER__KEEP_KINDS": '["EMAIL"]',
                "NIGHTSCHOOL_TRAINING__LAST_LAYERS": "4",
                "NIGHTSCHOOL_TEACHER__API_KEY": "",
                "NIGHT_START": "21:00",
                "NIGHT_END": "05:00",
            }
        )
        assert loaded.rollout.steps == (0.2, 0.4)
        assert loaded.hooks.secrets == {"ci": (SecretStr("whsec_x"),)}
        assert loaded.anonymizer.keep_kinds == ("EMAIL",)
        assert loaded.training.last_layers == 4
        assert loaded.teacher.api_key is None
        assert (loaded.night.start, loaded.night.end) == ("21:00", "05:00")

    def test_the_long_name_beats_the_short_one(self) -> None:
        environ = {"NIGHT_START": "21:00", "NIGHTSCHOOL_NIGHT__START": "20:00"}
        assert load_settings(environ=environ).night.start == "20:00"


class TestMistakes:
    def test_an_unknown_key_names_the_nearest(self, write: Write) -> None:
        file = write("[gateway]\nprot = 1\n[rollot]\nx = 1\n")
        message = refusal(path=file)
        assert f"{file}: unknown key gateway.prot: did you mean gateway.port?" in message
        assert "did you mean rollout?" in message

    def test_a_key_in_the_wrong_section_names_the_right_one(self, write: Write) -> None:
        assert "did you mean storage.endpoint_url?" in refusal(
            path=write("[database]\nendpoint_url = 'x'\n")
        )

    @pytest.mark.parametrize(
        ("name", "nearest"),
        [
            ("NIGHTSCHOOL_GATEWAY__PROT", "NIGHTSCHOOL_GATEWAY__PORT"),
            ("NIGHTSCHOOL_GATWAY__PORT", "NIGHTSCHOOL_GATEWAY__PORT"),
            ("NIGHTSCHOOL_GATEWAY_PORT", "NIGHTSCHOOL_GATEWAY__PORT"),
        ],
    )
    def test_an_unknown_variable_names_the_nearest(self, name: str, nearest: str) -> None:
        assert refusal(environ={name: "1"}) == f"{name}: unknown setting: did you mean {nearest}?"

    def test_a_value_out_of_bounds_names_file_field_and_bound(self, write: Write) -> None:
        file = write("[gateway]\nport = 99999\n")
        assert refusal(path=file) == (
            f"{file}: gateway.port: Input should be less than or equal to 65535"
        )

    def test_a_variable_out_of_bounds_names_itself(self) -> None:
        message = refusal(environ={"NIGHTSCHOOL_GATE__LEVEL": "0.7"})
        assert message == "NIGHTSCHOOL_GATE__LEVEL: gate.level: Input should be less than 0.5"

    def test_every_mistake_is_told(self, write: Write) -> None:
        message = refusal(
            path=write("[gateway]\nport = 'x'\n[gate]\nmargin = 2\n"),
            environ={"NIGHTSCHOOL_ENGINE__KIND": "magic"},
        )
        assert {line.split(": ")[1] for line in message.splitlines()} == {
            "engine.kind",
            "gate.margin",
            "gateway.port",
        }

    def test_a_list_that_is_no_json(self) -> None:
        message = refusal(environ={"NIGHTSCHOOL_ROLLOUT__STEPS": "a,b"})
        assert "NIGHTSCHOOL_ROLLOUT__STEPS" in message
        assert "JSON" in message

    def test_a_section_that_is_no_table(self, write: Write) -> None:
        assert "gateway" in refusal(path=write("gateway = 4\n"))

    def test_files_that_cannot_be_read(self, tmp_path: Path, write: Write) -> None:
        assert "No such file" in refusal(path=tmp_path / "missing.toml")
        assert "NIGHTSCHOOL_CONFIG" in refusal(environ={"NIGHTSCHOOL_CONFIG": "/no/such.toml"})
        assert "line 2" in refusal(path=write("[gateway]\nport =\n"))
        binary = tmp_path / "binary.toml"
        binary.write_bytes(b"\xff\xfe\x00")
        assert "UTF-8" in refusal(path=binary)
        assert "cannot be read" in refusal(path=tmp_path)

    @pytest.mark.parametrize(
        "text",
        [
            "[teacher]\napi_key = 5555\n",
            "[teacher]\napi_kee = 'verysecret'\n",
            "[hooks]\nsecrets = 'verysecret'\n",
            "[teacher]\napi_key = 'verysecret\n",
            "[database]\nurl = ['verysecret']\n",
        ],
    )
    def test_no_mistake_prints_a_value(self, write: Write, text: str) -> None:
        message = refusal(path=write(text))
        assert "verysecret" not in message
        assert "5555" not in message


class TestOrigins:
    def test_every_setting_is_listed_with_where_it_came_from(self, write: Write) -> None:
        file = write("[gateway]\nport = 1\n")
        environ = {"NIGHTSCHOOL_ENGINE__THREADS": "3", "NIGHT_END": "05:30"}
        arguments = {"path": file, "environ": environ, "overrides": {"gate": {"margin": 0.1}}}
        assert origin("gateway.port", **arguments)[1:3] == ("1", str(file))
        assert origin("engine.threads", **arguments)[1:3] == ("3", "NIGHTSCHOOL_ENGINE__THREADS")
        assert origin("night.end", **arguments)[1:3] == ("05:30", "NIGHT_END")
        assert origin("gate.margin", **arguments)[1:3] == ("0.1", "command line")
        assert origin("gateway.host", **arguments)[2] == "default"
        keys = [each.key for each in origins(**arguments)]
        assert (
            len(keys)
            == len(set(keys))
            == sum(
                len(section.annotation.model_fields)  # type: ignore[union-attr]
                for section in Settings.model_fields.values()
            )
        )

    def test_no_secret_is_printed(self, write: Write) -> None:
        file = write(
            "[database]\nurl = 'postgresql://u:verysecret@h/d'\n"
            "[teacher]\napi_key = 'verysecret'\nurl = 'http://u:verysecret@h/v1'\n"
            "[hooks.secrets]\nci = 'verysecret'\n"
            "[storage]\nsecret_access_key = 'verysecret'\n"
            "[notify]\nwebhook_url = 'https://u:verysecret@h'\n"
        )
        listed = origins(file, {})
        assert "verysecret" not in str(listed)
        assert "verysecret" not in repr(load_settings(file, {}).hooks)
        shown = {each.key: each.value for each in listed}
        assert shown["teacher.api_key"] == "********"
        assert shown["hooks.secrets"] == "ci: ********"
        assert shown["teacher.url"] == "http://********@h/v1"
        assert shown["storage.access_key_id"] == ""

    def test_a_local_database_is_shown(self) -> None:
        assert origin("database.url").value == "sqlite:///var/nightschool.db"
