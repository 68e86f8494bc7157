package module

import (
	"errors"

	"github.com/miekg/pkcs11"

	"github.com/keyturn/keyturn/hsm/token/internal/wire"
)

// coded is an error of the helper's own that has a code.
type coded struct {
	code wire.Code
	error
}

func (e coded) Unwrap() error { return e.error }

var (
	// The client saw the key when it opened it, so what is missing now is more
	// than the key: a new start may find it, or an impostor.
	errLost     = coded{wire.CodeLost, errors.New("the key was there and is not any more")}
	errIdentity = coded{wire.CodeWrongIdentity, errors.New("the key of this name is another one")}
)

// codes of the return values that say what they mean (PKCS #11, section 5.1).
var codes = map[pkcs11.Error]wire.Code{
	pkcs11.CKR_PIN_INCORRECT:            wire.CodeWrongPIN,
	pkcs11.CKR_PIN_INVALID:              wire.CodeWrongPIN,
	pkcs11.CKR_PIN_LEN_RANGE:            wire.CodeWrongPIN,
	pkcs11.CKR_PIN_LOCKED:               wire.CodeLocked,
	pkcs11.CKR_PIN_EXPIRED:              wire.CodeAuthExpired,
	pkcs11.CKR_DEVICE_REMOVED:           wire.CodeLost,
	pkcs11.CKR_TOKEN_NOT_PRESENT:        wire.CodeLost,
	pkcs11.CKR_TOKEN_NOT_RECOGNIZED:     wire.CodeLost,
	pkcs11.CKR_SLOT_ID_INVALID:          wire.CodeLost,
	pkcs11.CKR_SESSION_HANDLE_INVALID:   wire.CodeLost,
	pkcs11.CKR_SESSION_CLOSED:           wire.CodeLost,
	pkcs11.CKR_USER_NOT_LOGGED_IN:       wire.CodeLost,
	pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED: wire.CodeLost,
}

// codeOf classifies an error for the client.
func codeOf(err error) wire.Code {
	var own coded
	var native pkcs11.Error
	switch {
	case err == nil:
		return wire.CodeOK
	case errors.As(err, &own):
		return own.code
	case errors.As(err, &native):
		if code, known := codes[native]; known {
			return code
		}
	}
	return wire.CodeRefused
}

// missing marks a failure of the module, on the way to its token, as a token
// that is not there: a new start finds it when it is back.
func missing(err error) error {
	var native pkcs11.Error
	if errors.As(err, &native) && codeOf(err) == wire.CodeRefused {
		return coded{wire.CodeAbsent, err}
	}
	return err
}

// unclear reports whether err may mean that a handle is stale, that the token
// is gone, or merely that the operation failed: tokens use these values for
// all three, a tampered ciphertext included.
func unclear(err error) bool {
	var native pkcs11.Error
	if !errors.As(err, &native) {
		return false
	}
	switch native {
	case pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED, pkcs11.CKR_DEVICE_ERROR,
		pkcs11.CKR_DATA_INVALID, pkcs11.CKR_ENCRYPTED_DATA_INVALID, pkcs11.CKR_ENCRYPTED_DATA_LEN_RANGE:
		return true
	}
	return stale(err)
}

// stale reports whether err says that the object handle names nothing now.
func stale(err error) bool {
	var native pkcs11.Error
	return errors.As(err, &native) &&
		(native == pkcs11.CKR_KEY_HANDLE_INVALID || native == pkcs11.CKR_OBJECT_HANDLE_INVALID)
}
