"""The package on a machine that has never seen it."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from system.service import PERSON, STRANGER

if TYPE_CHECKING:
    from system.machine import Machine
    from system.service import Service


def test_it_is_not_started_and_says_what_to_do(machine: Machine, installed: str) -> None:
    """A daemon without a bucket can do nothing: who installs it is told the way there, and no unit has failed."""
    for hint in ("/etc/s3spool/s3spool.toml", "/etc/s3spool/credentials", "systemctl enable --now s3spool"):
        assert hint in installed
    shown = machine.show("s3spool", "ActiveState", "UnitFileState", "LoadState", "NRestarts")
    assert shown == {"ActiveState": "inactive", "UnitFileState": "disabled", "LoadState": "loaded", "NRestarts": "0"}
    assert "0 loaded units" in machine.out("systemctl --failed")


def test_user_group_and_folder_are_there(machine: Machine, installed: str) -> None:
    """Members of the group drop files, nobody removes another's, and others do not even see them."""
    user = machine.out("getent passwd s3spool").split(":")
    assert user[6].endswith("nologin")
    assert 0 < int(user[2]) < 1000
    assert machine.out("getent group s3spool")
    folder = machine.path("/var/spool/s3spool").stat()
    assert stat.S_IMODE(folder.st_mode) == 0o3770
    assert machine.out("stat -c %G /var/spool/s3spool") == "s3spool"
    machine.run("touch /var/spool/s3spool/mine", user=PERSON)
    assert machine.run("ls /var/spool/s3spool", user=STRANGER, check=False).returncode
    machine.run("useradd --groups s3spool bob")
    assert machine.run("rm -f /var/spool/s3spool/mine", user="bob", check=False).returncode
    machine.run("rm /var/spool/s3spool/mine", user=PERSON)


def test_the_command_its_manuals_and_its_completion_work(machine: Machine, installed: str) -> None:
    """What a person reaches for first; each manual is clean to the eyes of groff, each shell knows the commands."""
    version = machine.out("dpkg-query -W -f '${Version}' s3spool")
    assert machine.out("s3spool --version", user=PERSON) == f"s3spool, version {version}"
    assert "drop" in machine.out("man s3spool | cat")
    assert "settle_s" in machine.out("man s3spool.toml | cat")
    for manual in ("man1/s3spool.1.gz", "man5/s3spool.toml.5.gz"):
        assert machine.run(f"man --warnings --local-file /usr/share/man/{manual}").stderr == ""
    complete = "set +u; . /usr/share/bash-completion/bash_completion; _load_comp s3spool || __load_completion s3spool"
    asked = "COMP_WORDS=(s3spool sta) COMP_CWORD=1; complete -p s3spool"
    completer = machine.out(f"bash -c '{complete}; {asked}'").split(" -F ")[1].split()[0]
    call = f"COMP_WORDS=(s3spool sta); COMP_CWORD=1; {completer} s3spool sta s3spool; echo ${{COMPREPLY[@]}}"
    assert machine.out(f"bash -c '{complete}; {call}'") == "status"
    assert machine.out("fish -c 'complete -C \"s3spool sta\"'").startswith("status\t")
    # zsh asks for a terminal to complete on; its function is called with all that it would have there.
    asked = "words=(s3spool sta); CURRENT=2; _describe() { print -r -- ${(P)3} }; $_comps[s3spool]"
    assert machine.out(f"zsh -fc 'autoload -Uz compinit; compinit -uD; {asked}'").startswith("status:")


def test_a_start_without_a_bucket_fails_once_and_says_why(machine: Machine, service: Service) -> None:
    """Exit code 78 is a mistake of a person: systemd does not try again, and one line names the key."""
    shipped = machine.out("dpkg-query -W -f '${Conffiles}' s3spool")
    assert "/etc/s3spool/s3spool.toml" in shipped
    mark = machine.mark()

    service.systemctl("start", check=False)

    machine.wait_for("systemctl is-failed s3spool")
    shown = machine.show("s3spool", "ExecMainStatus", "NRestarts", "Result")
    assert shown == {"ExecMainStatus": "78", "NRestarts": "0", "Result": "exit-code"}
    messages = [entry["MESSAGE"] for entry in machine.journal(after=mark)]
    assert any("destination.bucket" in str(message) for message in messages)
