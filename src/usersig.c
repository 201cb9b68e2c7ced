/*-------------------------------------------------------------------------
 *
 * usersig.c
 *	  Signatures that Tencent Chat accepts from a server or a client.
 *
 * A UserSig is a JSON object with an HMAC-SHA256 over four of its fields, in
 * a zlib container, in base64 with three letters exchanged (tls-sig-api-v2,
 * the published libraries for Go, C++, Java, Node, Python and PHP).  Its
 * expiry counts seconds from its own time, it is no end time.
 *
 * The container is written here as one stored block, which is what the Go
 * library sends too: the bytes then depend on no version of zlib, and no
 * library is left with a copy of the signature on its heap.
 *
 * Pure functions: no PostgreSQL header, no state, so nothing to recover after
 * a crash.  Key material lives on the stack only and is wiped on every path.
 *
 *-------------------------------------------------------------------------
 */
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

#include "usersig.h"

#define HMAC_LEN			32
#define HMAC_BASE64_LEN		44

/* The fixed parts of the JSON object with three numbers of full length. */
#define JSON_FRAME_LEN		256
#define JSON_MAX_LEN		(2 * USERSIG_MAX_IDENTIFIER + JSON_FRAME_LEN)

/* zlib header, header of a stored block, checksum (RFC 1950, RFC 1951). */
#define CONTAINER_HEAD		7
#define CONTAINER_TAIL		4
#define CONTAINER_MAX_LEN	(CONTAINER_HEAD + JSON_MAX_LEN + CONTAINER_TAIL)

#if 4 * ((2 * USERSIG_MAX_IDENTIFIER + 256 + 11 + 2) / 3) >= USERSIG_MAX_LEN
#error "USERSIG_MAX_LEN is too small for USERSIG_MAX_IDENTIFIER"
#endif

/*
 * The four lines that are signed, every one ended by a line feed.  The key is
 * the secret's text as the console shows it.
 */
static bool
sign_fields(char *dst, const char *key, size_t keylen, const char *identifier,
			uint32_t sdkappid, int64_t now, int64_t lifetime)
{
	char		lines[USERSIG_MAX_IDENTIFIER + 160];
	unsigned char mac[EVP_MAX_MD_SIZE];
	unsigned int maclen = 0;
	int			len;
	bool		ok;

	len = snprintf(lines, sizeof(lines),
				   "TLS.identifier:%s\n"
				   "TLS.sdkappid:%" PRIu32 "\n"
				   "TLS.time:%" PRId64 "\n"
				   "TLS.expire:%" PRId64 "\n",
				   identifier, sdkappid, now, lifetime);
	ok = len > 0 && (size_t) len < sizeof(lines) && keylen <= INT_MAX &&
		HMAC(EVP_sha256(), key, (int) keylen, (unsigned char *) lines,
			 (size_t) len, mac, &maclen) != NULL &&
		maclen == HMAC_LEN;
	if (ok)
		EVP_EncodeBlock((unsigned char *) dst, mac, HMAC_LEN);

	OPENSSL_cleanse(mac, sizeof(mac));
	return ok;
}

/*
 * Copy the identifier as the inside of a JSON string.  Control characters
 * are refused, and not only because no UserID has them: a line feed would let
 * a caller write further lines into what is signed.
 */
static bool
escape_identifier(char *dst, const char *identifier)
{
	for (const char *s = identifier; *s != '\0'; s++)
	{
		if ((unsigned char) *s < 0x20)
			return false;
		if (*s == '"' || *s == '\\')
			*dst++ = '\\';
		*dst++ = *s;
	}
	*dst = '\0';
	return true;
}

static uint32_t
adler32_of(const unsigned char *data, size_t len)
{
	uint32_t	a = 1;
	uint32_t	b = 0;

	for (size_t i = 0; i < len; i++)
	{
		a = (a + data[i]) % 65521;
		b = (b + a) % 65521;
	}
	return (b << 16) | a;
}

/* Wrap data as a zlib stream of one final stored block. */
static size_t
store_block(unsigned char *dst, const unsigned char *data, size_t len)
{
	uint32_t	sum = adler32_of(data, len);
	unsigned char *p = dst;

	*p++ = 0x78;				/* deflate, window of 32 kB */
	*p++ = 0x01;				/* fastest level, check bits */
	*p++ = 0x01;				/* final block, stored */
	*p++ = (unsigned char) len;
	*p++ = (unsigned char) (len >> 8);
	*p++ = (unsigned char) ~len;
	*p++ = (unsigned char) (~len >> 8);
	memcpy(p, data, len);
	p += len;
	for (int shift = 24; shift >= 0; shift -= 8)
		*p++ = (unsigned char) (sum >> shift);
	return (size_t) (p - dst);
}

/* Base64 in the alphabet of UserSig, which is not that of RFC 4648's URLs. */
static void
encode_usersig(char *dst, const unsigned char *data, size_t len)
{
	EVP_EncodeBlock((unsigned char *) dst, data, (int) len);
	for (; *dst != '\0'; dst++)
	{
		if (*dst == '+')
			*dst = '*';
		else if (*dst == '/')
			*dst = '-';
		else if (*dst == '=')
			*dst = '_';
	}
}

/* See usersig.h. */
bool
usersig_make(char *dst, const char *key, size_t keylen,
			 const char *identifier, uint32_t sdkappid,
			 int64_t now, int64_t lifetime)
{
	char		escaped[2 * USERSIG_MAX_IDENTIFIER + 1];
	char		sig[HMAC_BASE64_LEN + 1];
	char		json[JSON_MAX_LEN + 1];
	unsigned char container[CONTAINER_MAX_LEN];
	int			len = 0;
	bool		ok;

	dst[0] = '\0';
	if (key == NULL || identifier == NULL ||
		strnlen(identifier, USERSIG_MAX_IDENTIFIER + 1) > USERSIG_MAX_IDENTIFIER ||
		!escape_identifier(escaped, identifier))
		return false;

	ok = sign_fields(sig, key, keylen, identifier, sdkappid, now, lifetime);
	if (ok)
	{
		len = snprintf(json, sizeof(json),
					   "{\"TLS.ver\":\"2.0\",\"TLS.identifier\":\"%s\","
					   "\"TLS.sdkappid\":%" PRIu32 ","
					   "\"TLS.expire\":%" PRId64 ","
					   "\"TLS.time\":%" PRId64 ",\"TLS.sig\":\"%s\"}",
					   escaped, sdkappid, lifetime, now, sig);
		ok = len > 0 && (size_t) len < sizeof(json);
	}
	if (ok)
		encode_usersig(dst, container,
					   store_block(container, (unsigned char *) json,
								   (size_t) len));

	OPENSSL_cleanse(sig, sizeof(sig));
	OPENSSL_cleanse(json, sizeof(json));
	OPENSSL_cleanse(container, sizeof(container));
	return ok;
}
