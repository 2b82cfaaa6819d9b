"""The low-bit folder: save, load, verify. docs/checkpoint.md describes it on one page.

Owns what a saved model is: weights as a safetensors file in the packed layout, the model's configuration and
tokenizer, where it came from, and checksums. Refuses to quantise, to replace a folder that holds somebody else's
model, and to leave half a folder behind. Opening maps the file: nothing is copied and nothing is repacked.
"""

from __future__ import annotations

import datetime
import json
import logging
import shutil
import zlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lowbit import __version__
from lowbit.checkpoint._replace import put_in_place, refuse_target, staging_folder, sync_file
from lowbit.checkpoint._weights import WeightsFile, write_weights
from lowbit.formats import FORMATS
from lowbit.models._spec import SPECS
from lowbit.packed import PackedTensor
from lowbit.sources._foreign import refuse_foreign

logger = logging.getLogger(__name__)

VERSION = 1  # of the folder; a reader refuses higher ones
QUANT_METHOD = "lowbit"
WEIGHTS, MANIFEST = "model.safetensors", "lowbit.json"
CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"

# A folder up to this size has every byte checked when it is opened (788 MB: 0.33 s on 2 CPUs, 5 ms unchecked). Larger
# ones have sizes, header and first chunk checked, all bytes with verify=True.
VERIFY_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model in memory: its graph, its tensors by canonical name, and what belongs to it.

    tensors: PackedTensor, or arrays: float32 vectors, of a ModuleSpec anything. config: the Hugging Face config.json.
    tokenizer_files: path of each file by its name in the folder. embedding_files: likewise, what sentence-transformers
    keeps beside a model (pooling, prompts, lengths, dense layers). quantization: the choices made (format, group_size,
    ...), without the spec. provenance: where the weights came from (source, revision, lowbit, created).
    """

    spec: Any  # one of SPECS
    tensors: dict[str, PackedTensor | np.ndarray]
    config: dict[str, Any]
    generation_config: dict[str, Any] = field(default_factory=dict)
    tokenizer_files: dict[str, Path] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    quantization: dict[str, Any] = field(default_factory=dict)
    embedding_files: dict[str, Path] = field(default_factory=dict)
    notices: dict[str, Path] = field(default_factory=dict)  # licences and the like that travel with the weights
    activation_errors: dict[str, float] = field(default_factory=dict)  # of precision.measure; {}: not measured

    @property
    def packed_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.data.nbytes if isinstance(t, PackedTensor) else t.nbytes for t in self.tensors.values())


def is_low_bit(config: dict[str, Any]) -> bool:
    """Returns whether a config.json is that of a low-bit folder."""
    quantization = config.get("quantization_config")
    return isinstance(quantization, dict) and quantization.get("quant_method") == QUANT_METHOD


def save(loaded: LoadedModel, folder: str | Path) -> Path:
    """Returns the folder, complete on disk. Until then an older low-bit folder of that name stays as it was.

    Other people's files in the folder are kept. Raises FileExistsError when the folder holds a model lowbit did not
    write, OSError when it cannot be written (a full disk, no permission); nothing is changed or left behind then.
    """
    target = Path(folder).expanduser().absolute()
    target = target.resolve() if target.exists() else target
    refuse_target(target, MANIFEST)
    needed = loaded.packed_bytes
    try:
        with staging_folder(target, MANIFEST) as stage:
            _write(loaded, stage)
            put_in_place(stage, target, MANIFEST)
    except OSError as error:
        if error.errno is None:
            raise  # has its own words
        raise _explained(error, target, needed) from error
    logger.info("saved %s (%d MB)", target, needed >> 20)
    return target


def load(folder: str | Path, verify: bool | None = None) -> LoadedModel:
    """Returns the model of a low-bit folder, its weights mapped read-only and shared with other processes.

    verify: True checks every byte against its checksum, False none, None every byte of folders up to VERIFY_BYTES.
    Raises FileNotFoundError when files are missing, ValueError when the folder is damaged or from a newer lowbit.
    """
    folder = Path(folder).expanduser().absolute()
    while True:
        opened = _identity(folder)
        try:
            loaded = _load(folder, verify)
        except (OSError, ValueError):
            if _identity(folder) == opened:
                raise
        else:
            if _identity(folder) == opened:
                return loaded
        logger.debug("%s was replaced while it was opened; opening it again", folder)


def verify(folder: str | Path) -> None:
    """Returns when every byte of a low-bit folder is as it was saved; raises ValueError that lists what is not.

    Configuration and tokenizer files count here, while `load` only warns about them: people edit those on purpose.
    """
    folder = Path(folder).expanduser().absolute()
    manifest = _read_manifest(folder)
    complaints = _changed_files(folder, manifest)
    try:
        load(folder, verify=True)
    except ValueError as error:
        complaints.insert(0, str(error))
    if complaints:
        raise ValueError("; ".join(complaints))


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object of a file; ValueError naming the file when it holds anything else."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); download or save it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__} where a JSON object was expected")
    return value


# ---- writing ------------------------------------------------------------------------------------------------------


def _write(loaded: LoadedModel, stage: Path) -> None:
    quantization = {
        "quant_method": QUANT_METHOD,
        "version": VERSION,
        **loaded.quantization,
        "graph": next(name for name, kind in SPECS.items() if isinstance(loaded.spec, kind)),
        "spec": loaded.spec.to_dict(),
        **({"activation_errors": loaded.activation_errors} if loaded.activation_errors else {}),
    }
    quantization = json.loads(json.dumps(quantization))  # as it will be read back: tuples are lists
    _write_json(stage / CONFIG, {**loaded.config, "quantization_config": quantization})
    if loaded.generation_config:
        _write_json(stage / GENERATION_CONFIG, loaded.generation_config)
    for name, path in {**loaded.tokenizer_files, **loaded.embedding_files, **loaded.notices}.items():
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            raise FileNotFoundError(f"{path} is gone since the model was loaded; load it again and save then")
        shutil.copyfile(path, stage / name)
    files = {path.relative_to(stage).as_posix(): _file_facts(path) for path in _files(stage)}
    for path in _files(stage):
        sync_file(path)
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    manifest = {
        "version": VERSION,
        "provenance": {**loaded.provenance, "lowbit": __version__, "created": created},
        "quantization_crc32": _table_crc(quantization),
        "weights": {"file": WEIGHTS, **write_weights(stage / WEIGHTS, loaded.tensors)},
        "files": files,
        "embedding_files": sorted(loaded.embedding_files),
        "notices": sorted(loaded.notices),
    }
    _write_json(stage / MANIFEST, manifest)
    sync_file(stage / MANIFEST)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _file_facts(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"bytes": len(content), "crc32": f"{zlib.crc32(content):08x}"}


def _table_crc(table: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(table, sort_keys=True).encode()):08x}"


def _explained(error: OSError, target: Path, needed: int) -> OSError:
    parent = next(p for p in (target, *target.parents) if p.exists())
    cause = error.strerror or str(error)
    room = f"needs {needed / 1e6:.1f} MB, {shutil.disk_usage(parent).free / 1e6:.1f} MB are free"
    text = f"could not save to {target}: {cause} ({room}); nothing was changed. "
    return type(error)(error.errno, text + "Choose a folder with room that you may write to")


# ---- reading ------------------------------------------------------------------------------------------------------


def _load(folder: Path, verify: bool | None) -> LoadedModel:
    config, manifest = _read_config(folder), _read_manifest(folder)
    quantization = dict(config["quantization_config"])
    if _table_crc(quantization) != manifest["quantization_crc32"]:
        raise ValueError(
            f"the quantization_config in {folder / CONFIG} was changed since it was saved; save the model again"
        )
    weights = WeightsFile(_complete(folder, manifest), manifest["weights"])
    everything = verify if verify is not None else weights.bytes <= VERIFY_BYTES
    if verify is not False:
        weights.check(None if everything else 1)
    if everything:
        for complaint in _changed_files(folder, manifest):
            logger.warning("%s", complaint)
    try:
        spec = SPECS[quantization.pop("graph", "decoder")].from_dict(quantization.pop("spec"))
        tensors = {name: _tensor(name, weights) for name in weights.names}
        errors = {str(name): float(error) for name, error in quantization.pop("activation_errors", {}).items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} is damaged ({error!r} missing or malformed); save the model again") from None
    generation = folder / GENERATION_CONFIG
    notices, embedding = (set(manifest.get(kind, ())) for kind in ("notices", "embedding_files"))
    extra = {name: folder / name for name in manifest["files"] if name not in (CONFIG, GENERATION_CONFIG)}
    return LoadedModel(
        spec=spec,
        tensors=tensors,
        config=config,
        generation_config=read_json(generation) if generation.exists() else {},
        tokenizer_files={n: path for n, path in extra.items() if n not in notices | embedding and path.exists()},
        provenance=dict(manifest["provenance"]),
        quantization={k: v for k, v in quantization.items() if k not in ("quant_method", "version")},
        embedding_files={name: path for name, path in extra.items() if name in embedding and path.exists()},
        notices={name: path for name, path in extra.items() if name in notices and path.exists()},
        activation_errors=errors,
    )


def _identity(folder: Path) -> tuple[int, int] | None:
    """Returns what tells a folder from the one that takes its place under the same name."""
    try:
        facts = folder.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).exists():
        raise FileNotFoundError(f"no {CONFIG} in {folder}; give a folder written by save_low_bit or `lowbit convert`")
    config = read_json(folder / CONFIG)
    if not is_low_bit(config):
        refuse_foreign(folder, config)
        raise ValueError(f"{folder} is not a low-bit folder of lowbit; open it with lowbit.load, which can quantise it")
    _refuse_newer(folder, config["quantization_config"].get("version"))
    return config


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.exists():
        raise FileNotFoundError(f"no {MANIFEST} in {folder}: the low-bit folder is incomplete; copy or save it again")
    manifest = read_json(path)
    _refuse_newer(folder, manifest.get("version"))
    if missing := sorted({"provenance", "quantization_crc32", "weights", "files"} - set(manifest)):
        raise ValueError(f"{path} lacks {', '.join(missing)}; copy or save the folder again")
    if not isinstance(manifest["files"], dict) or not all(_is_inside(name) for name in manifest["files"]):
        raise ValueError(f"{path} names files outside its folder; copy or save the folder again")
    return manifest


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _refuse_newer(folder: Path, version: object) -> None:
    if not isinstance(version, int) or version < 1:
        raise ValueError(f"{folder} states no folder version (found {version!r}); save the model again")
    if version > VERSION:
        raise ValueError(
            f"{folder} was written by a newer lowbit (folder version {version}; this is lowbit {__version__}, which "
            f"reads up to {VERSION}); upgrade with: pip install -U lowbit"
        )


def _complete(folder: Path, manifest: dict[str, Any]) -> Path:
    path = folder / WEIGHTS
    if not path.exists():
        raise FileNotFoundError(f"no {WEIGHTS} in {folder}: the low-bit folder is incomplete; copy or save it again")
    return path


def _changed_files(folder: Path, manifest: dict[str, Any]) -> list[str]:
    complaints = []
    for name, facts in manifest["files"].items():
        path = folder / name
        if not path.exists():
            complaints.append(f"{path} is missing")
        elif _file_facts(path) != facts:
            complaints.append(f"{path} was changed since it was saved")
    return complaints


def _tensor(name: str, weights: WeightsFile) -> PackedTensor | np.ndarray:
    facts, data = weights.facts(name), weights.read(name)
    if facts is None:
        return data
    rows, k = (int(n) for n in facts["shape"])
    format, group_size, multiplier = FORMATS[facts["format"]], int(facts["group_size"]), float(facts["multiplier"])
    try:
        return PackedTensor(format, group_size, (rows, k), multiplier, data)
    except ValueError as error:
        raise ValueError(
            f"{weights.path} is damaged: tensor {name!r}: {error}; copy or save the folder again"
        ) from None
