package ima

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// A field is one part of template data, by the kernel's name for it.
type field string

const (
	fieldDigest   field = "d"      // a bare digest, of SHA-1 or MD5
	fieldDigestNG field = "d-ng"   // algorithm, colon, zero byte, digest
	fieldDigestV2 field = "d-ngv2" // the same behind ima: or verity:
	fieldName     field = "n"      // at most 255 bytes
	fieldNameNG   field = "n-ng"   // a string and its zero byte
	fieldSig      field = "sig"    // the file's signature, may be empty
	fieldBuf      field = "buf"    // a measured buffer
	fieldModDig   field = "d-modsig"
	fieldModSig   field = "modsig"
	fieldEVMSig   field = "evmsig"
	fieldXNames   field = "xattrnames"
	fieldXLengths field = "xattrlengths"
	fieldXValues  field = "xattrvalues"
	fieldUID      field = "iuid"
	fieldGID      field = "igid"
	fieldMode     field = "imode"
)

// A template says what an entry's data is made of.
type template struct {
	name   string
	fields []field
}

// legacy is the oldest template. Its digest has no length in front of it, its
// name no zero byte, and it is hashed with the name padded to 256 bytes.
const legacy = "ima"

var templates = []template{
	{legacy, []field{fieldDigest, fieldName}},
	{"ima-ng", []field{fieldDigestNG, fieldNameNG}},
	{"ima-sig", []field{fieldDigestNG, fieldNameNG, fieldSig}},
	{"ima-ngv2", []field{fieldDigestV2, fieldNameNG}},
	{"ima-sigv2", []field{fieldDigestV2, fieldNameNG, fieldSig}},
	{"ima-buf", []field{fieldDigestNG, fieldNameNG, fieldBuf}},
	{"ima-modsig", []field{fieldDigestNG, fieldNameNG, fieldSig, fieldModDig, fieldModSig}},
	{"evm-sig", []field{fieldDigestNG, fieldNameNG, fieldEVMSig, fieldXNames, fieldXLengths, fieldXValues, fieldUID, fieldGID, fieldMode}},
}

var knownFields = []field{
	fieldDigest, fieldDigestNG, fieldDigestV2, fieldName, fieldNameNG, fieldSig, fieldBuf, fieldModDig, fieldModSig,
	fieldEVMSig, fieldXNames, fieldXLengths, fieldXValues, fieldUID, fieldGID, fieldMode,
}

// findTemplate returns the template of that name, or of that format: fields
// separated by bars. The name is not hashed, so whoever shows a list could have a
// field read as another: a format has its digest first, then its name, and no
// other of either kind, as every template of the kernel's has.
func findTemplate(name []byte) (*template, error) {
	for i := range templates {
		if string(name) == templates[i].name {
			return &templates[i], nil
		}
	}
	if !bytes.ContainsRune(name, '|') {
		return nil, fmt.Errorf("template %.40q is not one that is known", name)
	}
	t := &template{name: string(name)}
	for part := range strings.SplitSeq(t.name, "|") {
		if !slices.Contains(knownFields, field(part)) || len(t.fields) == maxFields || slices.Contains(t.fields, field(part)) {
			return nil, fmt.Errorf("template %.40q: field %.20q is not one that is known, is there twice or is one too many", name, part)
		}
		if f := field(part); f.isDigest() != (len(t.fields) == 0) || f.isName() != (len(t.fields) == 1) {
			return nil, fmt.Errorf("template %.40q: field %s stands where it is not read: a digest comes first, then a name", name, f)
		}
		t.fields = append(t.fields, field(part))
	}
	return t, nil
}

func (f field) isDigest() bool {
	return f == fieldDigest || f == fieldDigestNG || f == fieldDigestV2
}

func (f field) isName() bool { return f == fieldName || f == fieldNameNG }
