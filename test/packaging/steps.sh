# shellcheck shell=bash
#
# The steps of test/check that make timpush's packages and try them: PGXN's
# archive, Debian's package and the Dockerfile.  All of it comes from the
# archive that "make dist" makes of the tree as it is.
#
# To be sourced by test/check.

SYSTEM_PG_CONFIG=${PG_CONFIG:-}

packaging_needs()
{
	need "to make packages" dpkg-dev fakeroot debhelper postgresql-all \
		postgresql-server-dev-all git unzip
	need "to check packages" lintian autopkgtest pgxnclient python3-jsonschema
	command -v npm >/dev/null || need "to check the Dockerfile" npm
}

meta_json()
{
	run python3 -c '
import json, sys, jsonschema
meta, schema = (json.load(open(name)) for name in sys.argv[1:])
errors = jsonschema.Draft7Validator(schema).iter_errors(meta)
sys.exit("\n".join(str(error) for error in errors) or None)
' "$1/META.json" "$1/test/packaging/meta.schema.json" &&
		run_in "$1" perl test/packaging/meta.pl
}

# The linter comes from the npm registry, by the caller's own settings for that.
dockerfile()
{
	mkdir "$SCRATCH/node" &&
		cp "$ROOT"/test/packaging/package{,-lock}.json "$SCRATCH/node" || return
	(cd "$SCRATCH/node" && npm ci --ignore-scripts --no-audit --no-fund \
		--no-update-notifier --loglevel=error --cache "$SCRATCH/node/cache") ||
		return
	run_in "$1" "$SCRATCH/node/node_modules/.bin/dockerfile-utils" lint Dockerfile
}

# The archive, unpacked; and "make clean" takes away whatever a build makes.
archive()
{
	local dir=$SCRATCH/archive file
	local -a git=(git -c user.name=timpush -c user.email=timpush@localhost)

	copy_tree "$dir" &&
		run_in "$dir" git init --quiet &&
		run_in "$dir" git add . &&
		run_in "$dir" "${git[@]}" commit --quiet --message archive &&
		run_in "$dir" make dist "PG_CONFIG=$PG_CONFIG" || return
	ARCHIVE=$(echo "$dir"/timpush-*.zip)
	file=${ARCHIVE##*/}
	run mv "$ARCHIVE" "$SCRATCH/$file" || return
	ARCHIVE=$SCRATCH/$file
	run unzip -q -d "$SCRATCH" "$ARCHIVE" || return
	UNPACKED=${ARCHIVE%.zip}
	run diff -r --exclude=.git "$dir" "$UNPACKED" || return

	limited "$dir" make -s "PG_CONFIG=$PG_CONFIG" &&
		limited "$dir" make -s clean "PG_CONFIG=$PG_CONFIG" &&
		run_in "$dir" git status --short --ignored >"$SCRATCH/log/unclean" || return
	[[ ! -s $SCRATCH/log/unclean ]] || {
		say "\"make clean\" leaves:"
		cat "$SCRATCH/log/unclean"
		return 1
	}
}

# What a user of PGXN does, with a PostgreSQL that has no timpush yet.  The
# client refuses a libdir that it may not write to, though nothing goes there,
# unless it has a program that gives it root's rights; env does not.
# shellcheck disable=SC2034
pgxn()
{
	local PG_CONFIG=$SYSTEM_PG_CONFIG BINDIR PKGLIBDIR status=0

	pg_private "$SCRATCH/pgxn"
	limited "$SCRATCH" pgxn install --sudo env --pg_config "$PG_CONFIG" \
		"$ARCHIVE" &&
		pgxn_check pgxn-plain &&
		pgxn_check pgxn-preloaded "shared_preload_libraries = 'timpush'" ||
		status=1
	BINDIR=
	set_environment
	return "$status"
}

pgxn_check()
{
	local status=0

	cluster_start "$@" || return
	limited "$SCRATCH" pgxn check --pg_config "$PG_CONFIG" "$ARCHIVE" || status=$?
	cluster_stop "$1" || status=1
	return "$status"
}

# Its own tests run at the end of the build, from its files in debian/.
debian_package()
{
	limited "$UNPACKED" dpkg-buildpackage --unsigned-source --unsigned-changes \
		--build=binary
}

# The tag that is left out asks for the number of a bug in Debian's tracker.
debian_lintian()
{
	limited "$SCRATCH" lintian --fail-on error,warning \
		--suppress-tags initial-upload-closes-no-bugs "$SCRATCH"/timpush_*.changes
}

debian_autopkgtest()
{
	# run_in's user, who is root here
	# shellcheck disable=SC2034
	local -a AS_USER=()

	limited / unshare --mount --ipc --pid --fork --kill-child \
		"$ROOT/test/packaging/autopkgtest" "$SCRATCH/throwaway" \
		"$(echo "$SCRATCH"/postgresql-"$PG_MAJOR"-timpush_*.deb)" "$UNPACKED"
}

packaging_steps()
{
	simple_step "META.json, by PGXN's rules" meta_json "$SCRATCH/src" || true
	simple_step "Dockerfile, by a linter" dockerfile "$SCRATCH/src" || true
	simple_step "make dist, make clean" archive || return 0
	simple_step "PGXN: install and run the regression tests" pgxn || true
	simple_step "Debian: build, and run the regression tests" debian_package ||
		return 0
	simple_step "Debian: lintian" debian_lintian || true
	if unshare --mount --ipc --pid --fork true 2>/dev/null; then
		simple_step "Debian: autopkgtest in a throwaway system" \
			debian_autopkgtest || true
	else
		say "    No autopkgtest, which takes root's rights."
	fi
}
