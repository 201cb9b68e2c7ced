/*-------------------------------------------------------------------------
 *
 * usersig.h
 *	  Signatures that Tencent Chat accepts from a server or a client.
 *
 *-------------------------------------------------------------------------
 */
#ifndef TIMPUSH_USERSIG_H
#define TIMPUSH_USERSIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A UserSig of an identifier of USERSIG_MAX_IDENTIFIER bytes fits in this. */
#define USERSIG_MAX_LEN			2048
#define USERSIG_MAX_IDENTIFIER	256

/*
 * Make the UserSig of "identifier" for the app "sdkappid", valid for
 * "lifetime" seconds from "now" (unix seconds), signed with the text "key"
 * (the secret as the console shows it, not hex-decoded).
 *
 * Writes a NUL-terminated string into dst, which has room for
 * USERSIG_MAX_LEN bytes.  Returns false, with dst empty, if the identifier is
 * too long or has control characters, or if OpenSSL fails.  Leaves no copy of
 * the key behind.
 */
extern bool usersig_make(char *dst, const char *key, size_t keylen,
						 const char *identifier, uint32_t sdkappid,
						 int64_t now, int64_t lifetime);

#endif							/* TIMPUSH_USERSIG_H */
