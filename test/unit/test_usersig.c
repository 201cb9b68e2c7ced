/*-------------------------------------------------------------------------
 *
 * test_usersig.c
 *	  UserSigs byte for byte, and read back by other code than made them.
 *
 *-------------------------------------------------------------------------
 */
#include <stdlib.h>

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <zlib.h>

#include "tap.h"
#include "usersig.h"

/* The key of the public documentation, and two made-up ones. */
#define KEY1 "5bd2850fff3ecb11d7c805251c51ee463a25727bddc2385f3fa8bfee1bb93b5e"
#define KEY2 "test-server-secret"
#define KEY3 "0000000000000000000000000000000000000000000000000000000000000000"

typedef struct Vector
{
	const char *key;
	const char *identifier;
	uint32_t	sdkappid;
	int64_t		time;
	int64_t		expire;
	const char *sig;
	const char *usersig;
} Vector;

/* Made by other code, and compared with the published Python library. */
static const Vector vectors[] = {
	{
		KEY1, "xiaojun", 1400000000, 1700000000, 15552000,
		"LvA7d/Iw7gSsnskvVzBDPOCCDbuNCw4GHwTC0bip+B4=",
		"eAEBqwBU-3siVExTLnZlciI6IjIuMCIsIlRMUy5pZGVudGlmaWVyIjoieGlh"
		"b2p1biIsIlRMUy5zZGthcHBpZCI6MTQwMDAwMDAwMCwiVExTLmV4cGlyZSI6"
		"MTU1NTIwMDAsIlRMUy50aW1lIjoxNzAwMDAwMDAwLCJUTFMuc2lnIjoiTHZB"
		"N2QvSXc3Z1NzbnNrdlZ6QkRQT0NDRGJ1TkN3NEdId1RDMGJpcCtCND0ifa3H"
		"MfI_"
	},
	{
		KEY1, "administrator", 1400000000, 1700000000, 86400,
		"yLAe+w7WUeUuqbV9h/TX78u21oTGi+i9Zp1u3PpnY60=",
		"eAEBrgBR-3siVExTLnZlciI6IjIuMCIsIlRMUy5pZGVudGlmaWVyIjoiYWRt"
		"aW5pc3RyYXRvciIsIlRMUy5zZGthcHBpZCI6MTQwMDAwMDAwMCwiVExTLmV4"
		"cGlyZSI6ODY0MDAsIlRMUy50aW1lIjoxNzAwMDAwMDAwLCJUTFMuc2lnIjoi"
		"eUxBZSt3N1dVZVV1cWJWOWgvVFg3OHUyMW9UR2kraTlacDF1M1Bwblk2MD0i"
		"fbyIM5I_"
	},
	{
		KEY1, "admin", 88888888, 1735689600, 3600,
		"DGYhZBbHovIUavnQCD31tDOtjB5FhdCfHXfJ3iDCDCk=",
		"eAEBowBc-3siVExTLnZlciI6IjIuMCIsIlRMUy5pZGVudGlmaWVyIjoiYWRt"
		"aW4iLCJUTFMuc2RrYXBwaWQiOjg4ODg4ODg4LCJUTFMuZXhwaXJlIjozNjAw"
		"LCJUTFMudGltZSI6MTczNTY4OTYwMCwiVExTLnNpZyI6IkRHWWhaQmJIb3ZJ"
		"VWF2blFDRDMxdERPdGpCNUZoZENmSFhmSjNpRENEQ2s9In1ESDAY"
	},
	{
		KEY2, "administrator", 1600150143, 1784160000, 86400,
		"8rnA6coMONfPTFLBAaCQJuRL6OxngyYlLO8Qs8Ue7KY=",
		"eAEBrgBR-3siVExTLnZlciI6IjIuMCIsIlRMUy5pZGVudGlmaWVyIjoiYWRt"
		"aW5pc3RyYXRvciIsIlRMUy5zZGthcHBpZCI6MTYwMDE1MDE0MywiVExTLmV4"
		"cGlyZSI6ODY0MDAsIlRMUy50aW1lIjoxNzg0MTYwMDAwLCJUTFMuc2lnIjoi"
		"OHJuQTZjb01PTmZQVEZMQkFhQ1FKdVJMNk94bmd5WWxMTzhRczhVZTdLWT0i"
		"fcjrNAo_"
	},
	{
		KEY3, "user_1-A", 20000001, 2147483648, 604800,
		"yL84hwviBvW3sk9UjXbNJ/XIMRDSiyDJaw0ayZbYJ2w=",
		"eAEBqABX-3siVExTLnZlciI6IjIuMCIsIlRMUy5pZGVudGlmaWVyIjoidXNl"
		"cl8xLUEiLCJUTFMuc2RrYXBwaWQiOjIwMDAwMDAxLCJUTFMuZXhwaXJlIjo2"
		"MDQ4MDAsIlRMUy50aW1lIjoyMTQ3NDgzNjQ4LCJUTFMuc2lnIjoieUw4NGh3"
		"dmlCdlczc2s5VWpYYk5KL1hJTVJEU2l5REphdzBheVpiWUoydz0ifQkSMaE_"
	},
	{
		KEY1, "\xE7\xAE\xA1\xE7\x90\x86\xE5\x91\x98", 1400000000, 1700000000, 86400,
		"pbrM5gj3jEaLcveZ2CyjpTNJES7Up4k7XBCC+iPigpA=",
		"eAEBqgBV-3siVExTLnZlciI6IjIuMCIsIlRMUy5pZGVudGlmaWVyIjoi566h"
		"55CG5ZGYIiwiVExTLnNka2FwcGlkIjoxNDAwMDAwMDAwLCJUTFMuZXhwaXJl"
		"Ijo4NjQwMCwiVExTLnRpbWUiOjE3MDAwMDAwMDAsIlRMUy5zaWciOiJwYnJN"
		"NWdqM2pFYUxjdmVaMkN5anBUTkpFUzdVcDRrN1hCQ0MraVBpZ3BBPSJ9*680"
		"2A__"
	}
};

/*
 * Undo what makes a UserSig of its JSON: alphabet, base64, zlib.  Returns the
 * length of the text, or -1.
 */
static int
decode(char *json, size_t room, const char *usersig)
{
	unsigned char text[USERSIG_MAX_LEN] = {0};
	unsigned char data[USERSIG_MAX_LEN];
	uLongf		jsonlen = room - 1;
	size_t		len = strlen(usersig);
	int			datalen;

	for (size_t i = 0; i < len; i++)
	{
		char		c = usersig[i];

		if (strchr("+/=", c) != NULL)
			return -1;
		text[i] = c == '*' ? '+' : c == '-' ? '/' : c == '_' ? '=' : c;
	}
	datalen = EVP_DecodeBlock(data, text, (int) len);
	if (datalen < 0)
		return -1;
	for (size_t i = len; i > 0 && text[i - 1] == '='; i--)
		datalen--;
	if (uncompress((Bytef *) json, &jsonlen, data, (uLong) datalen) != Z_OK)
		return -1;
	json[jsonlen] = '\0';
	return (int) jsonlen;
}

/* The signature of a set of fields, put together in another way. */
static void
expected_sig(char *dst, const char *key, const char *identifier,
			 uint32_t sdkappid, int64_t time, int64_t expire)
{
	char	   *lines = malloc(strlen(identifier) + 256);
	unsigned char mac[EVP_MAX_MD_SIZE];
	unsigned int maclen;
	char	   *p = lines;

	p += sprintf(p, "TLS.identifier:%s\n", identifier);
	p += sprintf(p, "TLS.sdkappid:%lu\n", (unsigned long) sdkappid);
	p += sprintf(p, "TLS.time:%lld\n", (long long) time);
	p += sprintf(p, "TLS.expire:%lld\n", (long long) expire);
	HMAC(EVP_sha256(), key, (int) strlen(key), (unsigned char *) lines,
		 (size_t) (p - lines), mac, &maclen);
	EVP_EncodeBlock((unsigned char *) dst, mac, (int) maclen);
	free(lines);
}

/* Make one, read it back, compare it with the JSON that it should be. */
static void
check_round_trip(const char *name, const char *identifier,
				 const char *escaped, uint32_t sdkappid, int64_t time,
				 int64_t expire)
{
	char		usersig[USERSIG_MAX_LEN];
	char		json[USERSIG_MAX_LEN];
	char		expected[USERSIG_MAX_LEN];
	char		sig[64];

	memset(usersig, 'x', sizeof(usersig));
	if (!ok(usersig_make(usersig, KEY1, strlen(KEY1), identifier, sdkappid,
						 time, expire), "%s: made", name))
		return;
	ok(strlen(usersig) < USERSIG_MAX_LEN, "%s: fits", name);
	ok(decode(json, sizeof(json), usersig) > 0, "%s: can be decoded", name);
	expected_sig(sig, KEY1, identifier, sdkappid, time, expire);
	snprintf(expected, sizeof(expected),
			 "{\"TLS.ver\":\"2.0\",\"TLS.identifier\":\"%s\","
			 "\"TLS.sdkappid\":%lu,\"TLS.expire\":%lld,\"TLS.time\":%lld,"
			 "\"TLS.sig\":\"%s\"}", escaped, (unsigned long) sdkappid,
			 (long long) expire, (long long) time, sig);
	is(json, expected, name);
}

static void
check_vectors(void)
{
	for (size_t i = 0; i < sizeof(vectors) / sizeof(vectors[0]); i++)
	{
		const Vector *v = &vectors[i];
		char		usersig[USERSIG_MAX_LEN];
		char		json[USERSIG_MAX_LEN] = "";
		char		sig[64];

		ok(usersig_make(usersig, v->key, strlen(v->key), v->identifier,
						v->sdkappid, v->time, v->expire),
		   "vector %zu: made", i + 1);
		is(usersig, v->usersig, "vector's bytes");
		ok(decode(json, sizeof(json), usersig) > 0, "vector can be decoded");
		snprintf(sig, sizeof(sig), "\"%s\"", v->sig);
		ok(strstr(json, sig) != NULL, "vector's signature");
	}
}

/* The alphabet's three exchanged letters all occur somewhere. */
static void
check_alphabet(void)
{
	bool		seen[3] = {false, false, false};
	int			bad = 0;

	for (int i = 0; i < 1000; i++)
	{
		char		usersig[USERSIG_MAX_LEN];
		char		json[USERSIG_MAX_LEN];
		char		identifier[32];

		snprintf(identifier, sizeof(identifier), "\xC3\xBF\xEF\xBF\xBE%d", i);
		if (!usersig_make(usersig, KEY2, strlen(KEY2), identifier, 1, i, 60) ||
			strpbrk(usersig, "+/=") != NULL ||
			decode(json, sizeof(json), usersig) <= 0)
			bad++;
		for (int j = 0; j < 3; j++)
			seen[j] |= strchr(usersig, "*-_"[j]) != NULL;
	}
	is_int(bad, 0, "a thousand signatures decode");
	ok(seen[0] && seen[1] && seen[2], "the alphabet is used whole");
}

static void
check_limits(void)
{
	char		usersig[USERSIG_MAX_LEN];
	char		longest[USERSIG_MAX_IDENTIFIER + 2];
	char		escaped[2 * USERSIG_MAX_IDENTIFIER + 1];
	char		longkey[5000];

	memset(longest, 'a', sizeof(longest));
	longest[USERSIG_MAX_IDENTIFIER] = '\0';
	check_round_trip("longest identifier", longest, longest, UINT32_MAX,
					 INT64_MAX, INT64_MAX);

	memset(longest, '"', USERSIG_MAX_IDENTIFIER);
	for (int i = 0; i < USERSIG_MAX_IDENTIFIER; i++)
		memcpy(escaped + 2 * i, "\\\"", 3);
	check_round_trip("longest identifier, all quotes", longest, escaped,
					 UINT32_MAX, INT64_MIN, INT64_MIN);

	longest[USERSIG_MAX_IDENTIFIER] = 'a';
	longest[USERSIG_MAX_IDENTIFIER + 1] = '\0';
	strcpy(usersig, "old");
	ok(!usersig_make(usersig, KEY1, strlen(KEY1), longest, 1, 1, 1),
	   "an identifier that is too long is refused");
	is(usersig, "", "and leaves nothing");

	strcpy(usersig, "old");
	ok(!usersig_make(usersig, KEY1, strlen(KEY1), "a\nTLS.sdkappid:2", 1, 1, 1),
	   "a line feed cannot add to what is signed");
	is(usersig, "", "and leaves nothing");
	ok(!usersig_make(usersig, KEY1, strlen(KEY1), "\x1f", 1, 1, 1),
	   "nor any control character");
	ok(!usersig_make(usersig, NULL, 0, "a", 1, 1, 1), "no key is refused");

	memset(longkey, 'k', sizeof(longkey));
	ok(usersig_make(usersig, longkey, sizeof(longkey), "a", 1, 1, 1),
	   "a key longer than a hash block, not NUL-terminated");
}

int
main(void)
{
	check_vectors();
	check_round_trip("quotes", "a\"b", "a\\\"b", 7, 1700000000, 60);
	check_round_trip("backslashes", "\\a\\\\", "\\\\a\\\\\\\\", 7, 1, 60);
	check_round_trip("slash and DEL", "a/b\x7f", "a/b\x7f", 7, 1, 60);
	check_round_trip("one letter", "0", "0", 1, 0, 1);
	check_round_trip("empty", "", "", 1, 0, 1);
	check_round_trip("not ASCII", "\xE7\xAE\xA1\xF0\x9F\x98\x80",
					 "\xE7\xAE\xA1\xF0\x9F\x98\x80", 1, 1700000000, 86400);
	check_alphabet();
	check_limits();
	return done_testing();
}
