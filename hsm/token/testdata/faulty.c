/*
 * A PKCS#11 module that forwards to SoftHSM and does one thing wrong. What it
 * does wrong stands in the file that PKCS11_FAULT names and is read at each
 * call, so that a test can change it while the module is loaded.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "pkcs11go.h"

static CK_FUNCTION_LIST *real;
static CK_FUNCTION_LIST faulty;

static int fault(const char *name)
{
	char line[64] = "";
	FILE *f = fopen(getenv("PKCS11_FAULT"), "r");
	if (f) {
		if (!fgets(line, sizeof line, f))
			line[0] = 0;
		fclose(f);
	}
	return strcmp(line, name) == 0;
}

static CK_RV token_info(CK_SLOT_ID slot, CK_TOKEN_INFO *info)
{
	CK_RV rv = real->C_GetTokenInfo(slot, info);
	if (fault("count-low"))
		info->flags |= CKF_USER_PIN_COUNT_LOW;
	if (fault("final-try"))
		info->flags |= CKF_USER_PIN_FINAL_TRY;
	if (fault("locked"))
		info->flags |= CKF_USER_PIN_LOCKED;
	if (fault("escape"))
		memcpy(info->manufacturerID, "\033[31mEvil\n", 10);
	return rv;
}

static CK_RV login(CK_SESSION_HANDLE s, CK_USER_TYPE user, CK_UTF8CHAR *pin, CK_ULONG n)
{
	FILE *count = fopen(getenv("PKCS11_LOGINS"), "a");
	if (count) {
		fputc('x', count);
		fclose(count);
	}
	if (fault("crash-login"))
		*(volatile int *)8 = 1;
	if (fault("hang-login"))
		pause();
	if (fault("vague-login"))
		return CKR_FUNCTION_FAILED;
	return fault("locks") ? CKR_PIN_LOCKED : real->C_Login(s, user, pin, n);
}

static CK_RV sign(CK_SESSION_HANDLE s, CK_BYTE *data, CK_ULONG n, CK_BYTE *sig, CK_ULONG *size)
{
	CK_RV rv;

	if (fault("slow"))
		usleep(300 * 1000);
	rv = real->C_Sign(s, data, n, sig, size);
	if (fault("garbage") && rv == CKR_OK && sig)
		sig[*size / 2] ^= 1;
	if (fault("short") && rv == CKR_OK && sig)
		*size -= 1;
	if (fault("empty") && rv == CKR_OK && sig)
		*size = 0;
	if (fault("hang"))
		pause();
	if (fault("crash"))
		*(volatile int *)8 = 1;
	if (fault("exit"))
		_exit(0);
	if (fault("removed"))
		return CKR_DEVICE_REMOVED;
	return rv;
}

static CK_RV find_init(CK_SESSION_HANDLE s, CK_ATTRIBUTE *t, CK_ULONG n)
{
	if (fault("crash-find"))
		*(volatile int *)8 = 1;
	return real->C_FindObjectsInit(s, t, n);
}

/* A token on its way out: it still answers, with nothing in the answer. */
static CK_RV attributes(CK_SESSION_HANDLE s, CK_OBJECT_HANDLE h, CK_ATTRIBUTE *t, CK_ULONG n)
{
	CK_RV rv = real->C_GetAttributeValue(s, h, t, n);
	if (rv == CKR_OK && n == 1 && t->pValue && t->type == CKA_EC_POINT && (fault("blank") || fault("blank-once"))) {
		t->ulValueLen = 0;
		if (fault("blank-once"))
			fclose(fopen(getenv("PKCS11_FAULT"), "w"));
	}
	if (rv == CKR_OK && n == 1 && t->pValue && t->type == CKA_VALUE && fault("garbage-secret"))
		*(CK_BYTE *)t->pValue ^= 1;
	if (rv == CKR_OK && n == 1 && t->pValue && t->type == CKA_VALUE && fault("short-secret"))
		t->ulValueLen -= 1;
	return fault("unreadable") ? CKR_DEVICE_REMOVED : rv;
}

/* Handles that name another key than they did. */
static CK_OBJECT_HANDLE moved(CK_SESSION_HANDLE s, CK_OBJECT_HANDLE h)
{
	CK_ATTRIBUTE other = { CKA_LABEL, "other", 5 };
	CK_ULONG n;

	if (fault("moved") && real->C_FindObjectsInit(s, &other, 1) == CKR_OK) {
		real->C_FindObjects(s, &h, 1, &n);
		real->C_FindObjectsFinal(s);
	}
	return h;
}

static CK_RV encrypt_init(CK_SESSION_HANDLE s, CK_MECHANISM *m, CK_OBJECT_HANDLE h)
{
	return real->C_EncryptInit(s, m, moved(s, h));
}

static CK_RV decrypt_init(CK_SESSION_HANDLE s, CK_MECHANISM *m, CK_OBJECT_HANDLE h)
{
	return real->C_DecryptInit(s, m, moved(s, h));
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST **list)
{
	void *lib = dlopen("/usr/lib/softhsm/libsofthsm2.so", RTLD_NOW);
	CK_C_GetFunctionList get = lib ? (CK_C_GetFunctionList)dlsym(lib, "C_GetFunctionList") : NULL;
	if (!get || get(&real) != CKR_OK)
		return CKR_GENERAL_ERROR;
	faulty = *real;
	faulty.C_GetTokenInfo = token_info;
	faulty.C_Login = login;
	faulty.C_Sign = sign;
	faulty.C_GetAttributeValue = attributes;
	faulty.C_FindObjectsInit = find_init;
	faulty.C_EncryptInit = encrypt_init;
	faulty.C_DecryptInit = decrypt_init;
	*list = &faulty;
	return CKR_OK;
}
