"""Run a Multiboot image on an emulated Sapphire Rapids, which has AMX, and print what it writes to its serial port.

    python3 native/checks/bochs.py IMAGE

Ends with status 0 if the last line is PASSED. `make bochs` builds the image and calls this.
Bochs 3.0, as in Debian 13, works, in seconds; Debian's build of 3.1 divides signed 64-bit integers wrongly, which the
image says first.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BOOT_FILES = (  # of Debian's isolinux and syslinux-common
    "usr/lib/ISOLINUX/isolinux.bin",
    "usr/lib/syslinux/modules/bios/ldlinux.c32",
    "usr/lib/syslinux/modules/bios/libcom32.c32",
    "usr/lib/syslinux/modules/bios/mboot.c32",
)
MENU = "DEFAULT check\nPROMPT 0\nLABEL check\n KERNEL mboot.c32\n APPEND /image\n"
DISC = "-quiet -R -b isolinux/isolinux.bin -c isolinux/boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table"
MACHINE = """\
config_interface: textconfig
display_library: rfb, options="timeout=0"
memory: guest=128, host=128
romimage: file=$BXSHARE/BIOS-bochs-latest
vgaromimage: file=$BXSHARE/VGABIOS-lgpl-latest
ata0: enabled=1
ata0-master: type=cdrom, path="{folder}/boot.iso", status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev="{folder}/serial"
cpu: model=sapphire_rapids, count=1, ips=100000000, reset_on_triple_fault=0
clock: sync=none
log: "{folder}/log"
panic: action=fatal
"""


def boot_disc(folder: Path, image: Path, root: Path) -> None:
    """Writes folder/boot.iso, which loads the image."""
    disc = folder / "disc"
    (disc / "isolinux").mkdir(parents=True)
    for path in BOOT_FILES:
        shutil.copy(root / path, disc / "isolinux")
    (disc / "isolinux" / "isolinux.cfg").write_text(MENU)
    shutil.copy(image, disc / "image")
    subprocess.run(["genisoimage", *DISC.split(), "-o", str(folder / "boot.iso"), str(disc)], check=True)


def run(bochs: str, folder: Path, seconds: float) -> str:
    """Prints the serial port's lines as they come; returns the last, when the machine is off or `seconds` are over."""
    (folder / "machine").write_text(MACHINE.format(folder=folder))
    (folder / "serial").touch()
    (folder / "debugger").write_text("continue\n")  # builds with a debugger, as Debian's, begin in it
    command = [*bochs.split(), "-q", "-f", str(folder / "machine"), "-rc", str(folder / "debugger")]
    last, end = "", time.monotonic() + seconds
    with (
        open(folder / "messages", "wb") as messages,
        open(folder / "serial", errors="replace") as serial,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=messages, stderr=messages) as process,
    ):
        rest, over = "", False
        while not over:
            over = process.poll() is not None or time.monotonic() > end
            *lines, rest = (rest + serial.read()).split("\n")
            for line in filter(None, map(str.strip, lines)):
                print(line, flush=True)
                last = line
            time.sleep(0 if over else 1)
        process.kill()
    return last


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("--bochs", default="bochs", help="the command that runs Bochs")
    parser.add_argument("--root", type=Path, default=Path("/"), help="where isolinux and syslinux-common are unpacked")
    parser.add_argument("--minutes", type=float, default=30)
    args = parser.parse_args()
    missing = [path for path in BOOT_FILES if not (args.root / path).exists()]
    missing += [] if shutil.which("genisoimage") else ["genisoimage"]
    if missing:
        sys.exit(f"missing: {', '.join(missing)} (Debian: apt-get install isolinux syslinux-common genisoimage)")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        boot_disc(folder, args.image, args.root)
        last = run(args.bochs, folder, 60 * args.minutes)
        if last != "PASSED" and (folder / "log").exists():
            print("\n".join((folder / "log").read_text(errors="replace").splitlines()[-20:]))
    return 0 if last == "PASSED" else 1


if __name__ == "__main__":
    sys.exit(main())
