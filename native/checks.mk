# Checks of the native code that need a build or a CPU of their own; included by the Makefile, which defines DEV_PYTHON.
# They say so and succeed where a tool is missing, so that they can stand in one list with other targets.
.PHONY: sanitize check-threads sanitize-threads qemu bochs

SANITIZE := build/sanitize
# The interpreter is not sanitised, so the runtime libraries come first; python's own allocations at exit are no leaks of ours.
ASAN_PRELOAD = $$(c++ -print-file-name=libasan.so):$$(c++ -print-file-name=libubsan.so):$$(c++ -print-file-name=libstdc++.so.6)

sanitize:  ## native tests under AddressSanitizer and UndefinedBehaviorSanitizer: make sanitize T=tests/native
	@test -e "$$(c++ -print-file-name=libasan.so)" || { echo "sanitize: skipped, c++ has no AddressSanitizer"; exit 0; }; \
	set -e; \
	mkdir -p build; cmake -S native -B $(SANITIZE) -G Ninja -DLOWBIT_SANITIZE=address \
	    -DPython_EXECUTABLE=$$($(DEV_PYTHON) -c 'import sys; print(sys.executable)') > $(SANITIZE).log 2>&1 \
	    || { cat $(SANITIZE).log; exit 1; }; \
	cmake --build $(SANITIZE) -j 2; \
	rm -rf $(SANITIZE)/python && mkdir -p $(SANITIZE)/python && cp -r backend/lowbit $(SANITIZE)/python/; \
	rm -f $(SANITIZE)/python/lowbit/_native*.so && cp $(SANITIZE)/_native*.so $(SANITIZE)/python/lowbit/; \
	PYTHONPATH=$(SANITIZE)/python:integrations LD_PRELOAD=$(ASAN_PRELOAD) PYTHONMALLOC=malloc \
	    ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	    $(DEV_PYTHON) -X faulthandler -m pytest -q -m "not torch" $(or $(T),tests/native)

check-threads: native  ## the thread pool under load: a million barriers, forks, more threads than CPUs
	@cmake --build build/dev --target check_threads && build/dev/check_threads

SANITIZE_THREADS := build/sanitize-threads
# Without random addresses, which may lie where the sanitizer keeps its own.
TSAN = TSAN_OPTIONS=halt_on_error=1 setarch -R
# The scalar tier is the one whose accesses are watched; memory costs more here, and passes over 300 tokens take minutes. Threads
# of numpy's BLAS wait for each other where the sanitizer does not look, so there are none. Reports go past pytest's capture.
TSAN_TESTS := tests/models/test_sessions.py tests/models/test_side_by_side.py -k "not (avx or costs or fork)"
sanitize-threads:  ## the pool under load, and passes of small models on it, under ThreadSanitizer
	@test -e "$$(c++ -print-file-name=libtsan.so)" || { echo "sanitize-threads: skipped, c++ has no ThreadSanitizer"; exit 0; }; \
	set -e; \
	mkdir -p build; cmake -S native -B $(SANITIZE_THREADS) -G Ninja -DLOWBIT_SANITIZE=thread \
	    -DPython_EXECUTABLE=$$($(DEV_PYTHON) -c 'import sys; print(sys.executable)') > $(SANITIZE_THREADS).log 2>&1 \
	    || { cat $(SANITIZE_THREADS).log; exit 1; }; \
	cmake --build $(SANITIZE_THREADS) -j 2 --target check_threads; $(TSAN) $(SANITIZE_THREADS)/check_threads; \
	cmake --build $(SANITIZE_THREADS) -j 2; \
	rm -rf $(SANITIZE_THREADS)/python && mkdir -p $(SANITIZE_THREADS)/python && cp -r backend/lowbit $(SANITIZE_THREADS)/python/; \
	rm -f $(SANITIZE_THREADS)/python/lowbit/_native*.so && cp $(SANITIZE_THREADS)/_native*.so $(SANITIZE_THREADS)/python/lowbit/; \
	LOWBIT_ISA=scalar OPENBLAS_NUM_THREADS=1 PYTHONPATH=$(SANITIZE_THREADS)/python:integrations \
	    LD_PRELOAD=$$(c++ -print-file-name=libtsan.so) $(TSAN) \
	    $(DEV_PYTHON) -X faulthandler -m pytest -q --capture=sys -m "not torch" $(or $(T),$(TSAN_TESTS))

QEMU := qemu-x86_64
# Without what the emulator warns that it lacks.
OLD_CPU := Haswell,-invpcid,-rtm,-hle,-pcid,-x2apic,-tsc-deadline
qemu: native  ## smoke test on an emulated CPU without AVX-512 and AVX-VNNI (Debian: qemu-user)
	@command -v $(QEMU) > /dev/null || { echo "qemu: skipped, $(QEMU) is not installed (Debian: apt-get install qemu-user)"; exit 0; }; \
	PYTHONPATH=backend:tests $(QEMU) -cpu $(OLD_CPU) $$($(DEV_PYTHON) -c 'import sys; print(sys.executable)') tests/native/smoke.py

BOCHS := bochs
BOCHS_NEEDS := bochs isolinux syslinux-common genisoimage
bochs: native  ## tile products on an emulated CPU with AMX (Debian 13: bochs isolinux syslinux-common genisoimage)
	@command -v $(BOCHS) > /dev/null || { echo "bochs: skipped, $(BOCHS) is not installed (Debian: apt-get install $(BOCHS_NEEDS))"; exit 0; }; \
	set -e; \
	cmake --build build/dev --target check_tiles; objcopy -O binary build/dev/check_tiles build/dev/check_tiles.bin; \
	$(DEV_PYTHON) native/checks/bochs.py build/dev/check_tiles.bin
