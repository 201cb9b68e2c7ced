# timpush on the official image of PostgreSQL.
#
#	docker build --tag timpush .
#	docker run --env POSTGRES_PASSWORD=... timpush
#
# Then CREATE EXTENSION timpush in the databases that send pushes.

ARG PG_MAJOR=15

FROM postgres:${PG_MAJOR}-bookworm AS build

RUN apt-get update \
	&& apt-get install --yes --no-install-recommends gcc libc6-dev \
		libcurl4-openssl-dev libssl-dev make \
		"postgresql-server-dev-${PG_MAJOR}" \
	&& rm -rf /var/lib/apt/lists/*

COPY Makefile timpush.control /timpush/
COPY sql /timpush/sql/
COPY src /timpush/src/

# The server's bitcode for its JIT is left out: nothing of timpush is inlined.
WORKDIR /timpush
RUN make with_llvm=no \
		"PG_CONFIG=/usr/lib/postgresql/${PG_MAJOR}/bin/pg_config" \
	&& make install with_llvm=no DESTDIR=/timpush/root \
		"PG_CONFIG=/usr/lib/postgresql/${PG_MAJOR}/bin/pg_config"

FROM postgres:${PG_MAJOR}-bookworm

# The certificates are those that the API's is verified by.
RUN apt-get update \
	&& apt-get install --yes --no-install-recommends ca-certificates libcurl4 \
	&& rm -rf /var/lib/apt/lists/* \
	&& echo "shared_preload_libraries = 'timpush'" \
		>>/usr/share/postgresql/postgresql.conf.sample

COPY --from=build /timpush/root/ /
