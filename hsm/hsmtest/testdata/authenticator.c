/*
 * A FIDO authenticator in software, behind OpenSSH's sk-api.h (version 10 of
 * the interface, OpenSSH 9.1 and later). A key handle is the private key itself. How it signs stands in the
 * file that SK_SAYS names, "FLAGS COUNTER" in hex, read at each signature. If
 * the directory SK_ATTESTS has a P-256 key, key.der, and its certificate,
 * certificate.der, the authenticator attests to the keys that it makes.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <openssl/core_names.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/sha.h>
#include <openssl/x509.h>

enum { VERSION = 0x000a0000, ECDSA = 0, ED25519 = 1, FAILED = -1, UNSUPPORTED = -2 };

struct enrolled {
	uint8_t flags;
	uint8_t *public_key;
	size_t public_key_len;
	uint8_t *key_handle;
	size_t key_handle_len;
	uint8_t *signature;
	size_t signature_len;
	uint8_t *certificate;
	size_t certificate_len;
	uint8_t *authdata;
	size_t authdata_len;
};

struct assertion {
	uint8_t flags;
	uint32_t counter;
	uint8_t *r;
	size_t r_len;
	uint8_t *s;
	size_t s_len;
};

uint32_t sk_api_version(void)
{
	return VERSION;
}

/* Reads a file of the directory SK_ATTESTS; NULL if there is none. */
static uint8_t *read_file(const char *name, size_t *n)
{
	const char *dir = getenv("SK_ATTESTS");
	char path[4096];
	uint8_t *b = malloc(1 << 16);
	FILE *f;

	snprintf(path, sizeof path, "%s/%s", dir ? dir : "", name);
	if (!dir || !b || !(f = fopen(path, "r"))) {
		free(b);
		return NULL;
	}
	*n = fread(b, 1, 1 << 16, f);
	fclose(f);
	return b;
}

/*
 * Writes authenticator data (WebAuthn, section 6.1) as a CBOR byte string, and
 * signs it with the hash of the challenge.
 */
static int attest(struct enrolled *e, uint32_t alg, const uint8_t *challenge, size_t challenge_len, const char *application)
{
	static const uint8_t p256[] = {0xa5, 1, 2, 3, 0x26, 0x20, 1, 0x21, 0x58, 32}, ed25519[] = {0xa4, 1, 1, 3, 0x27, 0x20, 6, 0x21, 0x58, 32};
	size_t key_len, n;
	uint8_t *key_der = read_file("key.der", &key_len), *b;
	const uint8_t *at = key_der;
	EVP_PKEY *key;
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();

	e->certificate = read_file("certificate.der", &e->certificate_len);
	if (!key_der || !e->certificate)
		return 0;
	key = d2i_AutoPrivateKey(NULL, &at, key_len);
	e->authdata = b = calloc(1, 1024);
	e->signature = malloc(256);
	if (!key || !ctx || !b || !e->signature || e->key_handle_len > 512)
		return FAILED;
	b += 3; /* of the byte string's head */
	SHA256((const uint8_t *)application, strlen(application), b);
	b[32] = 0x40 | e->flags;
	b[36] = 1;
	memset(b + 37, 'k', 16);
	b[53] = e->key_handle_len >> 8;
	b[54] = e->key_handle_len;
	memcpy(b + 55, e->key_handle, e->key_handle_len);
	n = 55 + e->key_handle_len;
	memcpy(b + n, alg == ECDSA ? p256 : ed25519, sizeof p256);
	n += sizeof p256;
	memcpy(b + n, e->public_key + (alg == ECDSA), 32);
	n += 32;
	if (alg == ECDSA) {
		memcpy(b + n, "\x22\x58\x20", 3);
		memcpy(b + n + 3, e->public_key + 33, 32);
		n += 35;
	}
	e->authdata[0] = 0x59;
	e->authdata[1] = n >> 8;
	e->authdata[2] = n;
	e->authdata_len = 3 + n;
	SHA256(challenge, challenge_len, b + n);
	e->signature_len = 256;
	if (EVP_DigestSignInit(ctx, NULL, EVP_sha256(), NULL, key) != 1 || EVP_DigestSign(ctx, e->signature, &e->signature_len, b, n + 32) != 1)
		return FAILED;
	memset(b + n, 0, 32);
	EVP_MD_CTX_free(ctx);
	EVP_PKEY_free(key);
	free(key_der);
	return 0;
}

int sk_enroll(uint32_t alg, const uint8_t *challenge, size_t challenge_len, const char *application,
	      uint8_t flags, const char *pin, void **options, struct enrolled **out)
{
	struct enrolled *e = calloc(1, sizeof *e);
	EVP_PKEY *key = alg == ECDSA ? EVP_EC_gen("P-256") : alg == ED25519 ? EVP_PKEY_Q_keygen(NULL, NULL, "ED25519") : NULL;
	int n;

	if (!e || !key)
		return UNSUPPORTED;
	e->flags = flags;
	e->public_key = malloc(65);
	if (!e->public_key || EVP_PKEY_get_octet_string_param(key, OSSL_PKEY_PARAM_PUB_KEY, e->public_key, 65, &e->public_key_len) != 1)
		return FAILED;
	n = i2d_PrivateKey(key, &e->key_handle);
	EVP_PKEY_free(key);
	if (n <= 0)
		return FAILED;
	e->key_handle_len = n;
	*out = e;
	return attest(e, alg, challenge, challenge_len, application);
}

/* Takes a DER signature apart into r and s, 32 bytes each. */
static int split(struct assertion *a, const uint8_t *der, size_t n)
{
	ECDSA_SIG *sig = d2i_ECDSA_SIG(NULL, &der, n);

	a->r = malloc(32);
	a->s = malloc(32);
	if (!sig || !a->r || !a->s || BN_bn2binpad(ECDSA_SIG_get0_r(sig), a->r, 32) != 32 || BN_bn2binpad(ECDSA_SIG_get0_s(sig), a->s, 32) != 32)
		return FAILED;
	a->r_len = a->s_len = 32;
	ECDSA_SIG_free(sig);
	return 0;
}

int sk_sign(uint32_t alg, const uint8_t *message, size_t message_len, const char *application, const uint8_t *handle, size_t handle_len,
	    uint8_t flags, const char *pin, void **options, struct assertion **out)
{
	struct assertion *a = calloc(1, sizeof *a);
	EVP_PKEY *key = d2i_AutoPrivateKey(NULL, &handle, handle_len);
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	unsigned said = flags, counter = 7;
	uint8_t input[32 + 1 + 4 + 32], sig[128];
	size_t n = sizeof sig;
	FILE *f = fopen(getenv("SK_SAYS") ? getenv("SK_SAYS") : "", "r");

	if (f) {
		if (fscanf(f, "%x %x", &said, &counter) != 2)
			return FAILED;
		fclose(f);
	}
	if (!a || !key || !ctx)
		return FAILED;
	a->flags = said;
	a->counter = counter;
	SHA256((const uint8_t *)application, strlen(application), input);
	input[32] = said;
	input[33] = counter >> 24;
	input[34] = counter >> 16;
	input[35] = counter >> 8;
	input[36] = counter;
	SHA256(message, message_len, input + 37);
	if (EVP_DigestSignInit(ctx, NULL, alg == ECDSA ? EVP_sha256() : NULL, NULL, key) != 1 || EVP_DigestSign(ctx, sig, &n, input, sizeof input) != 1)
		return FAILED;
	EVP_MD_CTX_free(ctx);
	EVP_PKEY_free(key);
	*out = a;
	if (alg == ECDSA)
		return split(a, sig, n);
	a->r = malloc(n);
	if (!a->r)
		return FAILED;
	memcpy(a->r, sig, n);
	a->r_len = n;
	return 0;
}

int sk_load_resident_keys(const char *pin, void **options, void ***keys, size_t *n)
{
	return UNSUPPORTED;
}
