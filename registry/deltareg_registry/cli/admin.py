"""`deltareg-registry admin`: users, tokens, namespaces and members, changed in the database itself.

The server may run meanwhile. Whoever may write the database rules the registry, and needs no token. The audit log shows
such a change without an actor.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltareg_registry.cli.options import Data, DatabaseUrl, Json, open_database

if TYPE_CHECKING:
    from deltareg_registry.access.principal import Scope

__all__ = ["admin_app"]

admin_app = typer.Typer(help="Look after users, tokens, namespaces and members.", no_args_is_help=True)
user_app = typer.Typer(help="Users.", no_args_is_help=True)
token_app = typer.Typer(help="Tokens of users.", no_args_is_help=True)
namespace_app = typer.Typer(help="Namespaces.", no_args_is_help=True)
member_app = typer.Typer(help="Members of namespaces.", no_args_is_help=True)
admin_app.add_typer(user_app, name="user")
admin_app.add_typer(token_app, name="token")
admin_app.add_typer(namespace_app, name="namespace")
admin_app.add_typer(member_app, name="member")

_UserName = Annotated[str, typer.Argument(metavar="USER")]
_NamespaceName = Annotated[str, typer.Argument(metavar="NAMESPACE")]


@user_app.command("add")
def add_user(
    name: _UserName,
    data: Data,
    database: DatabaseUrl = None,
    admin: Annotated[bool, typer.Option("--admin", help="Make the user an administrator of the registry.")] = False,
    json: Json = False,
) -> None:
    """Make a user. They need a token before they can do anything: admin token create."""
    from deltareg.cli.output import print_report
    from deltareg_registry.access.principal import ANONYMOUS
    from deltareg_registry.api.users import user_details
    from deltareg_registry.records import users

    with open_database(data, database) as opened, opened.writing() as connection:
        made = user_details(users.add_user(connection, ANONYMOUS, name, admin=admin))
    print_report(made, json=json)


@user_app.command("list")
def list_users(data: Data, database: DatabaseUrl = None, json: Json = False) -> None:
    """List the users."""
    from deltareg.cli.output import hint, print_json, print_table
    from deltareg_registry.api.users import UserList, user_details
    from deltareg_registry.records import users

    with open_database(data, database) as opened, opened.reading() as connection:
        found = [user_details(user) for user in users.list_users(connection, limit=None)]
    if json:
        print_json(UserList(users=found))
    elif not found:
        hint(f"there is no user yet; make one: deltareg-registry admin user add NAME --data {data}")
    else:
        rows = [[user.name, "yes" if user.admin else "", user.created, user.disabled or ""] for user in found]
        print_table(["user", "admin", "created", "disabled"], rows)


@user_app.command("disable")
def disable_user(name: _UserName, data: Data, database: DatabaseUrl = None, json: Json = False) -> None:
    """Shut a user out, with all their tokens."""
    _set_disabled(name, data, database, json, disabled=True)


@user_app.command("enable")
def enable_user(name: _UserName, data: Data, database: DatabaseUrl = None, json: Json = False) -> None:
    """Let a user in again; the tokens that they had are good again too."""
    _set_disabled(name, data, database, json, disabled=False)


@token_app.command("create")
def create_token(
    user: _UserName,
    data: Data,
    database: DatabaseUrl = None,
    name: Annotated[str, typer.Option("--name", help="What the token is for.")] = "made by the operator",
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", metavar="NAMESPACE:ACTION", help="read, publish or own; * for all namespaces."),
    ] = None,
    expires: Annotated[str | None, typer.Option("--expires", metavar="TIME", help="2030-01-31, or RFC 3339.")] = None,
    days: Annotated[int | None, typer.Option("--days", help="How long it is good, instead of --expires.")] = None,
    json: Json = False,
) -> None:
    """Make a token for a user. It is shown this once.

    \b
      deltareg-registry admin token create ci --scope acme:publish --days 90 --data /srv/deltareg
    """
    from deltareg.cli.output import print_report
    from deltareg_registry.access.principal import ANONYMOUS
    from deltareg_registry.access.tokens import expiry
    from deltareg_registry.api.tokens import given_token
    from deltareg_registry.records.tokens import issue_token

    scopes = None if not scope else [_parse_scope(text) for text in scope]
    end = expiry(expires, days)
    with open_database(data, database) as opened, opened.writing() as connection:
        kept, secret = issue_token(connection, ANONYMOUS, user, name, scopes=scopes, expires=end)
    print_report(given_token(kept, secret), json=json, leave_out=() if json else ("scopes",))


@token_app.command("list")
def list_tokens(
    data: Data,
    user: Annotated[str | None, typer.Argument(metavar="[USER]")] = None,
    database: DatabaseUrl = None,
    json: Json = False,
) -> None:
    """List the tokens of a user, or of all; never the tokens themselves."""
    from deltareg.cli.output import hint, print_json, print_table
    from deltareg_registry.access import tokens
    from deltareg_registry.api.tokens import TokenList, TokenRecord, token_record
    from deltareg_registry.records.users import user_named

    def limits(token: TokenRecord) -> str:
        return " ".join(f"{scope.namespace}:{scope.action}" for scope in token.scopes or ())

    with open_database(data, database) as opened, opened.reading() as connection:
        if user is not None:
            user_named(connection, user)
        found = [token_record(token) for token in tokens.list_tokens(connection, user)]
    if json:
        print_json(TokenList(tokens=found))
    elif not found:
        hint(f"there is no token; make one: deltareg-registry admin token create {user or 'USER'} --data {data}")
    else:
        columns = ["id", "user", "name", "scopes", "created", "expires", "revoked", "last used"]
        rows = [
            [each.id, each.user, each.name, limits(each), each.created]
            + [time or "" for time in (each.expires, each.revoked, each.last_used)]
            for each in found
        ]
        print_table(columns, rows)


@token_app.command("revoke")
def revoke_token(
    identity: Annotated[str, typer.Argument(metavar="ID")], data: Data, database: DatabaseUrl = None, json: Json = False
) -> None:
    """Let a token be good for nothing from now on."""
    from deltareg.cli.output import print_report
    from deltareg.errors import NotFound
    from deltareg_registry.access import tokens
    from deltareg_registry.access.principal import ANONYMOUS
    from deltareg_registry.api.tokens import token_record
    from deltareg_registry.records.tokens import withdraw_token

    with open_database(data, database) as opened, opened.writing() as connection:
        found = tokens.list_tokens(connection, identity=identity)
        if not found:
            raise NotFound(f"there is no token {identity}", hint=f"deltareg-registry admin token list --data {data}")
        withdraw_token(connection, ANONYMOUS, found[0])
        done = token_record(tokens.list_tokens(connection, identity=identity)[0])
    print_report(done, json=json, leave_out=() if json else ("scopes",))


@namespace_app.command("create")
def create_namespace(
    name: _NamespaceName,
    data: Data,
    owner: Annotated[str, typer.Option("--owner", metavar="USER", help="Who owns it.")],
    database: DatabaseUrl = None,
    public: Annotated[bool, typer.Option("--public", help="It may be read without a token.")] = False,
    json: Json = False,
) -> None:
    """Make a namespace."""
    from deltareg.errors import Conflict
    from deltareg_registry.access.principal import ANONYMOUS
    from deltareg_registry.cli.listing import print_namespace
    from deltareg_registry.records.namespaces import make_namespace
    from deltareg_registry.records.users import user_named

    with open_database(data, database) as opened:
        with opened.writing() as connection:
            user_named(connection, owner)
            if not make_namespace(connection, name, ANONYMOUS, public=public, owner=owner):
                raise Conflict(f"there is a namespace {name} already")
        print_namespace(opened, name, json=json)


@namespace_app.command("list")
def list_namespaces(data: Data, database: DatabaseUrl = None, json: Json = False) -> None:
    """List the namespaces, and how much they hold."""
    from deltareg_registry.cli.listing import print_namespaces

    with open_database(data, database) as opened:
        print_namespaces(opened, data, json=json)


@namespace_app.command("quota")
def set_quota(
    name: _NamespaceName,
    size: Annotated[str, typer.Argument(metavar="SIZE", help="500GiB, a number of bytes, or none.")],
    data: Data,
    database: DatabaseUrl = None,
    json: Json = False,
) -> None:
    """Set how much a namespace may hold. What it holds already stays."""
    from deltareg.cli.units import parse_size
    from deltareg_registry.access.principal import ANONYMOUS
    from deltareg_registry.cli.listing import print_namespace
    from deltareg_registry.records.namespaces import change_namespace

    limit = None if size == "none" else parse_size(size)
    with open_database(data, database) as opened:
        with opened.writing() as connection:
            change_namespace(connection, ANONYMOUS, name, {"quota": limit})
        print_namespace(opened, name, json=json)


@namespace_app.command("signers")
def set_signers(
    name: _NamespaceName,
    data: Data,
    key: Annotated[
        list[Path] | None,
        typer.Option(
            "--key", metavar="FILE", help="A PEM file with public keys, instead of those of before. Several times."
        ),
    ] = None,
    none: Annotated[bool, typer.Option("--none", help="Ask for no signatures any more.")] = False,
    database: DatabaseUrl = None,
    json: Json = False,
) -> None:
    """Show the keys, one of which has to have signed what is in a namespace, or set them.

    Clients see to it, and show the same fingerprints: deltareg signers accept.

    \b
      deltareg-registry admin namespace signers acme --key acme.pub.pem --data /srv/deltareg
    """
    from deltareg_registry.access.principal import ANONYMOUS
    from deltareg_registry.cli.listing import print_signers
    from deltareg_registry.records.namespaces import change_namespace, lock_namespace
    from deltareg_registry.records.policies import changed_policy

    keys = _signers(key or [], none=none)
    with open_database(data, database) as opened:
        if keys is not None:
            with opened.writing() as connection:
                lock_namespace(connection, name)
                changes = {"policy": changed_policy(connection, name, {"signedBy": keys})}
                change_namespace(connection, ANONYMOUS, name, changes)
        print_signers(opened, name, json=json)


@member_app.command("set")
def set_member(
    namespace: _NamespaceName,
    user: _UserName,
    role: Annotated[str, typer.Argument(metavar="ROLE", help="reader, publisher or owner.")],
    data: Data,
    database: DatabaseUrl = None,
    json: Json = False,
) -> None:
    """Give a user a role in a namespace, instead of the one that they have."""
    from deltareg.cli.output import print_report
    from deltareg.errors import InvalidArgument
    from deltareg_registry.access.principal import ANONYMOUS, role_of
    from deltareg_registry.api.members import member_details
    from deltareg_registry.records import members

    try:
        wanted = role_of(role)
    except KeyError as error:
        raise InvalidArgument(f"{role!r} is no role", hint="reader, publisher or owner") from error
    with open_database(data, database) as opened, opened.writing() as connection:
        done = member_details(members.set_member(connection, ANONYMOUS, namespace, user, wanted))
    print_report(done, json=json)


@member_app.command("remove")
def remove_member(
    namespace: _NamespaceName, user: _UserName, data: Data, database: DatabaseUrl = None, json: Json = False
) -> None:
    """Take a user's role in a namespace away. Its last owner stays."""
    from deltareg.cli.output import print_json, print_line
    from deltareg_registry.access.principal import ANONYMOUS
    from deltareg_registry.api.members import MemberList, member_details
    from deltareg_registry.records import members

    with open_database(data, database) as opened, opened.writing() as connection:
        members.remove_member(connection, ANONYMOUS, namespace, user)
        left = [member_details(member) for member in members.list_members(connection, namespace)]
    if json:
        print_json(MemberList(members=left))
    else:
        print_line(f"{user} is no longer a member of {namespace}")


def _signers(files: list[Path], *, none: bool) -> list[str] | None:
    """The public keys that are to be set; None where they stay."""
    from deltareg.errors import InvalidArgument, UsageError
    from deltareg.signing.keys import read_pem
    from deltareg_registry.records.policies import MOST_SIGNERS, keys_in

    if none and files:
        raise UsageError("--key and --none cannot both be given", hint="leave one of them out")
    if not files:
        return [] if none else None
    texts = [(read_pem(path).decode("ascii", "replace"), str(path)) for path in files]
    keys = list(dict.fromkeys(key for text, path in texts for key in keys_in(text, path)))
    if len(keys) > MOST_SIGNERS:
        raise InvalidArgument(f"{len(keys)} keys are too many; a namespace has {MOST_SIGNERS} at most")
    return keys


def _set_disabled(name: str, data: Data, database: str | None, json: bool, *, disabled: bool) -> None:
    from deltareg.cli.output import print_report
    from deltareg_registry.access.principal import ANONYMOUS
    from deltareg_registry.api.users import user_details
    from deltareg_registry.records.users import change_user

    with open_database(data, database) as opened, opened.writing() as connection:
        done = user_details(change_user(connection, ANONYMOUS, name, disabled=disabled))
    print_report(done, json=json)


def _parse_scope(text: str) -> Scope:
    from typing import get_args

    from deltareg.errors import InvalidArgument
    from deltareg.names import parse_reference
    from deltareg_registry.access.principal import Action, Scope

    namespace, _, action = text.rpartition(":")
    known: dict[str, Action] = {each: each for each in get_args(Action)}
    if action not in known:
        raise InvalidArgument(f"{text!r} is no scope", hint="write acme:read, acme:publish, acme:own or '*:read'")
    if namespace != "*":
        parse_reference(f"{namespace}/x")
    return Scope(namespace=namespace, action=known[action])
