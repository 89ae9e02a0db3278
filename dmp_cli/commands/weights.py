"""`dmp weights`: the verbs of weights on one app; each is a file weights_*.py beside this one."""

import typer

from dmp_cli.commands.weights_import import import_
from dmp_cli.commands.weights_list import list_
from dmp_cli.commands.weights_path import path
from dmp_cli.commands.weights_pull import pull
from dmp_cli.commands.weights_push import push
from dmp_cli.commands.weights_remove import remove
from dmp_cli.commands.weights_verify import verify

app = typer.Typer(help="Get, check and keep the weights of models.", no_args_is_help=True)
app.command("path")(path)
app.command("push")(push)
app.command("import")(import_)
app.command("list")(list_)
app.command("pull")(pull)
app.command("remove")(remove)
app.command("verify")(verify)
