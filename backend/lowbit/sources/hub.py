"""Model ids and paths: a path is used as it is and never touches the network; an id is fetched by huggingface_hub.

Only what is needed is downloaded: first configuration and tokenizer (so that an unknown model is refused before
gigabytes are fetched), then the weights, safetensors if the repository has them, else `pytorch_model.bin`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lowbit.sources import safetensors, torch_bin
from lowbit.sources._foreign import refuse_foreign
from lowbit.sources._shards import read_index

logger = logging.getLogger(__name__)

# What makes a text model complete beside its weights. Also what a low-bit folder takes over from the original.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",  # sentencepiece: tokenizer.model, spiece.model, spm.model
    "*.tiktoken",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
# What sentence-transformers keeps beside an embedder: pooling, prompts, lengths, layers behind pooling.
EMBEDDING_FILES = (
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "[0-9]_*/config.json",
    "[0-9]_Dense/model.safetensors",
)
NOTICES = ("LICENSE*", "NOTICE*", "USE_POLICY*")
SMALL_FILES = ("config.json", "generation_config.json", "lowbit.json", *TOKENIZER_FILES, *EMBEDDING_FILES, *NOTICES)


@dataclass(frozen=True)
class Location:
    """A local folder, and for a hub model where it came from (revision: the commit hash)."""

    folder: Path
    model_id: str
    revision: str | None = None


@dataclass(frozen=True)
class Access:
    """How the hub may be used: where the cache is (None: the usual place), as whom, whether over the network."""

    cache_dir: str | os.PathLike | None = None
    token: str | bool | None = None
    local_files_only: bool = False
    show_progress: bool = False


def is_local(id_or_path: str | os.PathLike) -> bool:
    """Returns whether the argument means a path: it exists, or it is not written like `name` or `org/name`."""
    text = os.fspath(id_or_path)
    if isinstance(id_or_path, os.PathLike) or Path(text).expanduser().exists():
        return True
    return not re.fullmatch(r"[\w\-.]+(/[\w\-.]+)?", text, re.ASCII) or text.startswith(".") or text.endswith(".gguf")


def locate(id_or_path: str | os.PathLike, revision: str | None = None, access: Access = Access()) -> Location:
    """Returns where configuration and tokenizer of a model are; the weights of a hub model are not fetched yet.

    Raises FileNotFoundError (no such folder; not in the cache while offline), ValueError (a single file of a foreign
    kind), ValueError or PermissionError for an id the hub does not have or does not let this user read.
    """
    if is_local(id_or_path):
        folder = Path(id_or_path).expanduser().absolute()
        if not folder.exists():
            raise FileNotFoundError(
                f"no folder at {folder}; give the path of a model folder, or a hub id such as "
                "'Qwen/Qwen2.5-0.5B-Instruct'"
            )
        if not folder.is_dir():
            refuse_foreign(folder)
            raise ValueError(
                f"{folder} is a file; give the folder that contains it, with config.json beside the weights"
            )
        return Location(folder, str(folder))
    indexes = (reader.INDEX for reader in (safetensors, torch_bin))
    folder = _fetch(str(id_or_path), revision, [*SMALL_FILES, *indexes], access)
    return Location(folder, str(id_or_path), folder.name)


def fetch_weights(location: Location, access: Access = Access()) -> Location:
    """Returns the location once its weights are there too. Does nothing for a local folder. Raises as `locate`."""
    if location.revision is None:
        return location
    for reader in (safetensors, torch_bin):
        index = location.folder / reader.INDEX
        names = sorted(set(read_index(index).values())) if index.exists() else [reader.SINGLE]
        # config.json goes along because huggingface_hub warns on stderr where no file matches.
        folder = _fetch(location.model_id, location.revision, [*names, "config.json"], access)
        if any((folder / name).exists() for name in names):
            return Location(folder, location.model_id, location.revision)
    raise FileNotFoundError(
        f"{location.model_id} has no weights that lowbit reads (looked for {safetensors.SINGLE} and "
        f"{torch_bin.SINGLE}, single or sharded){' in the local cache' if access.local_files_only else ''}"
    )


def _fetch(model_id: str, revision: str | None, patterns: list[str], access: Access) -> Path:
    """Returns the folder `snapshot_download` gives, and puts its errors into plain words."""
    from huggingface_hub import errors, snapshot_download

    name = model_id + (f" (revision {revision})" if revision else "")
    try:
        with _progress_bars(access.show_progress):
            folder = snapshot_download(
                model_id,
                revision=revision,
                cache_dir=None if access.cache_dir is None else os.fspath(access.cache_dir),
                token=access.token,
                local_files_only=access.local_files_only,
                allow_patterns=patterns,
            )
    except errors.GatedRepoError:
        raise PermissionError(
            f"{name} asks for its licence to be accepted: open its page on the hub, accept, and pass token=..."
        ) from None
    except errors.RevisionNotFoundError:
        raise ValueError(f"{model_id} has no revision {revision!r}; give a branch, tag or commit hash it has") from None
    except errors.RepositoryNotFoundError:
        raise ValueError(
            f"there is no model {model_id!r} on the hub that this user can read, and no folder of that name "
            "here; check the spelling, or pass token=... for a private model"
        ) from None
    except errors.LocalEntryNotFoundError as error:
        why = "local_files_only is set" if access.local_files_only else "the hub cannot be reached"
        raise FileNotFoundError(
            f"{name} is not complete in the local cache and {why}; connect once to download it, or give a local folder"
        ) from error
    except errors.HfHubHTTPError as error:
        raise ConnectionError(f"the hub refused {name}: {str(error).splitlines()[0]}; try again later") from error
    except errors.HFValidationError as error:
        raise ValueError(f"{model_id!r} is neither a folder here nor a possible hub id ({error})") from None
    logger.debug("%s: %s in %s", name, ", ".join(patterns), folder)
    return Path(folder)


@contextlib.contextmanager
def _progress_bars(wanted: bool) -> Iterator[None]:
    """Silences huggingface_hub's bars unless they are wanted, and restores the user's own setting."""
    from huggingface_hub import utils

    if wanted or utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()
