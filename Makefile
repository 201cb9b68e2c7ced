# timpush: build with PGXS
#
# make && make install, then CREATE EXTENSION timpush.  "make installcheck"
# runs the regression tests against a running cluster, and "make dist" makes
# the archive of what is committed.  "make -f" with the path of this file
# builds in another folder.

MODULE_big = timpush
OBJS = \
	src/activation.o \
	src/apps.o \
	src/aside.o \
	src/breaker.o \
	src/claim.o \
	src/compose.o \
	src/cycle.o \
	src/enqueue.o \
	src/front.o \
	src/guard.o \
	src/http.o \
	src/insert.o \
	src/journal.o \
	src/launcher.o \
	src/limiter.o \
	src/load.o \
	src/manage.o \
	src/monitor.o \
	src/msgrandom.o \
	src/outbox.o \
	src/owner.o \
	src/policy.o \
	src/preview.o \
	src/push.o \
	src/recent.o \
	src/redact.o \
	src/request.o \
	src/response.o \
	src/retention.o \
	src/rowset.o \
	src/sender.o \
	src/server.o \
	src/shared.o \
	src/stats.o \
	src/status.o \
	src/timpush.o \
	src/usersig.o \
	src/version.o \
	src/wake.o \
	src/worker.o

EXTENSION = timpush
DATA = sql/timpush--1.0.sql
PGFILEDESC = "timpush - reliable sender of Tencent TIMPush notifications"

REGRESS = setup options enqueue preview trigger status usersig manage privileges comments drop

SHLIB_LINK = -lcurl -lcrypto

# test/fuzz/run builds with FUZZ=1: libFuzzer and its targets are in the library
# then, to run inside a backend.  The hooks of the instrumentation are to be
# libFuzzer's, not the empty ones of the sanitizers' runtime, which is loaded
# first; hence -Bsymbolic.
ifdef FUZZ
OBJS += $(patsubst %.c,%.o,$(wildcard test/fuzz/*.c))
SHLIB_LINK += -Wl,-Bsymbolic -lstdc++ -lm \
	$(shell $(CC) -print-file-name=libclang_rt.fuzzer_no_main-$(shell uname -m).a)
endif

# test/chaos builds with FAULTS=1: the worker then has places where a setting
# lets things go wrong, see src/fault.c.
ifdef FAULTS
OBJS += src/fault.o
endif

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

# PostgreSQL's headers warn under -Wextra; those of the system do not count.
override CPPFLAGS := $(patsubst -I%,-isystem %,$(filter-out -I. -I./,$(CPPFLAGS)))

# PostgreSQL's flags are those of the compiler that built it; clang does not
# know all of gcc's.
ifneq ($(findstring clang,$(CC)),)
override CFLAGS := $(filter-out -fexcess-precision=% -Wimplicit-fallthrough=% \
	-Wshadow=% -Wno-format-truncation -Wno-stringop-truncation,$(CFLAGS))
endif

ifdef FAULTS
override CPPFLAGS += -DTIMPUSH_FAULTS
endif

# Any header may matter to any file; there are few of both.
$(OBJS): $(wildcard $(srcdir)/src/*.h)

# Where make was called in another folder, there is none for the objects yet.
# A rule would find that of the sources.
$(shell mkdir -p src)

RELEASE = $(shell sed -n 's/^\t"version": "\(.*\)",/\1/p' $(srcdir)/META.json)

.PHONY: dist
dist:
	git -C $(srcdir) archive --format=zip --prefix=timpush-$(RELEASE)/ \
		--output=$(CURDIR)/timpush-$(RELEASE).zip HEAD

ifdef FUZZ
override CFLAGS += -O1 -fsanitize=address,undefined -fno-sanitize-recover=all
$(filter src/%,$(OBJS)): override CFLAGS += -fsanitize=fuzzer-no-link
$(filter test/%,$(OBJS)): override CPPFLAGS += -Isrc
endif
