package eventlog

import (
	"bytes"
	"strings"
	"testing"
)

// TestSecureBootAmbiguous changes one thing about a PCR 7 that is in order.
func TestSecureBootAmbiguous(t *testing.T) {
	cfg := func(name string, data ...byte) made {
		return made{pcr: 7, typ: EFIDriverConfig, data: variable(globalVariable, name, data)}
	}
	separator := made{pcr: 7, typ: Separator, data: zero4}
	authority := made{pcr: 7, typ: EFIVariableAuthority, data: variable(imageSecurity, "db", []byte("cert"))}
	hidden := made{pcr: 7, typ: EFIVariableAuthority, data: []byte("not what was measured"), digest: []byte("x")}
	action := func(text string) made { return made{pcr: 7, typ: EFIAction, data: []byte(text)} }
	on := cfg("SecureBoot", 1)
	tests := []struct {
		name   string
		events []made
		want   State
		reason string
	}{
		{"on", []made{on, separator}, On, ""},
		{"off", []made{cfg("SecureBoot", 0), separator}, Off, ""},
		{"separator of ones", []made{on, {pcr: 7, typ: Separator, data: bytes.Repeat([]byte{0xff}, 4)}}, On, ""},
		{"authorities", []made{on, authority, separator, authority, hidden}, On, ""},
		{"vendor's variable", []made{on, {pcr: 7, typ: EFIDriverConfig, data: variable(shimLock, "SecureBoot", []byte{0})}, separator}, On, ""},
		{"no action between", []made{on, {pcr: 7, typ: NoAction, data: []byte("note")}, separator}, On, ""},
		{"DMA protection off", []made{action("DMA Protection Disabled\x00"), on, separator}, On, ""},
		{"devices by SPDM", []made{on, {pcr: 7, typ: SPDMDevicePolicy, data: variable(shimLock, "devdb", nil)}, separator,
			{pcr: 7, typ: SPDMDeviceAuthority, data: variable(shimLock, "devdb", []byte("cert"))}}, On, ""},
		{"state told as a device policy", []made{cfg("SecureBoot", 0), {pcr: 7, typ: SPDMDevicePolicy, data: on.data}, separator}, Unknown, "twice"},
		{"state told as a device authority", []made{on, separator, {pcr: 7, typ: SPDMDeviceAuthority, data: on.data}}, Unknown, "called an authority"},
		{"hidden device authority", []made{on, {pcr: 7, typ: SPDMDeviceAuthority, data: []byte("x"), digest: []byte("y")}, separator}, Unknown, "could be anything"},
		{"device policy after the separator", []made{on, separator, {pcr: 7, typ: SPDMDevicePolicy, data: variable(shimLock, "devdb", nil)}}, Unknown, "after the separator"},
		{"nothing", []made{{pcr: 0, data: zero4}}, Unknown, "no separator"},
		{"no separator", []made{on}, Unknown, "no separator"},
		{"no variable", []made{separator}, Unknown, "before any SecureBoot"},
		{"variable after", []made{separator, on}, Unknown, "before any SecureBoot"},
		{"empty variable", []made{cfg("SecureBoot"), separator}, Unknown, "0 bytes"},
		{"two bytes", []made{cfg("SecureBoot", 1, 1), separator}, Unknown, "2 bytes"},
		{"value 2", []made{cfg("SecureBoot", 2), separator}, Unknown, "is 2"},
		{"measured twice", []made{on, on, separator}, Unknown, "twice"},
		{"measured off, then on", []made{cfg("SecureBoot", 0), on, separator}, Unknown, "twice"},
		{"second separator", []made{on, separator, separator}, Unknown, "second separator"},
		{"error separator", []made{on, {pcr: 7, typ: Separator, data: []byte{1, 0, 0, 0}}}, Unknown, "its digest is not one's"},
		{"separator by digest only", []made{on, {pcr: 7, typ: 0xd, data: zero4}}, Unknown, "it is called"},
		{"separator by type only", []made{on, {pcr: 7, typ: Separator, data: zero4, digest: []byte("x")}}, Unknown, "its digest is not one's"},
		{"hidden before", []made{on, hidden, separator}, Unknown, "could be anything"},
		{"edited variable", []made{{pcr: 7, typ: EFIDriverConfig, data: on.data, digest: []byte("x")}, separator}, Unknown, "could be anything"},
		{"unknown type before", []made{on, {pcr: 7, typ: 0x8401, data: []byte("x")}, separator}, Unknown, "does not belong"},
		{"unknown type after", []made{on, separator, {pcr: 7, typ: 0x8401, data: []byte("x")}}, Unknown, "after the separator"},
		{"variable after the separator", []made{on, separator, cfg("PK")}, Unknown, "after the separator"},
		{"variable as authority", []made{on, separator, {pcr: 7, typ: EFIVariableAuthority, data: on.data}}, Unknown, "called an authority"},
		{"debugger", []made{action("UEFI Debug Mode"), on, separator}, Unknown, "UEFI Debug Mode"},
		{"name too long", []made{{pcr: 7, typ: EFIDriverConfig, data: patchName(on.data, 0xffff)}, separator}, Unknown, "characters"},
		{"name wraps", []made{{pcr: 7, typ: EFIDriverConfig, data: patchName(on.data, 1<<63+10)}, separator}, Unknown, "characters"},
		{"data too long", []made{{pcr: 7, typ: EFIDriverConfig, data: on.data[:len(on.data)-1]}, separator}, Unknown, "0 left"},
		{"stray byte", []made{{pcr: 7, typ: EFIDriverConfig, data: append(bytes.Clone(on.data), 0)}, separator}, Unknown, "2 left"},
		{"no variable at all", []made{{pcr: 7, typ: EFIDriverConfig, data: []byte("short")}, separator}, Unknown, "5 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			claim := mustParse(t, agile([]Algorithm{SHA256}, tt.events...)).SecureBoot("sha256")
			if claim.State != tt.want || (tt.reason == "") != (claim.Reason == "") || !strings.Contains(claim.Reason, tt.reason) {
				t.Errorf("got %v (%s), wanted %v (%s)", claim.State, claim.Reason, tt.want, tt.reason)
			}
		})
	}
}

// patchName overwrites the number of characters of a variable's name.
func patchName(data []byte, units uint64) []byte {
	data = bytes.Clone(data)
	for i := range 8 {
		data[16+i] = byte(units >> (8 * i))
	}
	return data
}

func TestSecureBootDetails(t *testing.T) {
	list := signatureList(28+32, 0, 32, bytes.Repeat([]byte{3}, 32))
	shimByte := append(variable(imageSecurity, "db", []byte("cert")), 0)
	events := []made{
		{pcr: 7, typ: EFIAction, data: []byte("DMA Protection Disabled")},
		{pcr: 7, typ: EFIDriverConfig, data: variable(globalVariable, "SecureBoot", []byte{1})},
		{pcr: 7, typ: EFIDriverConfig, data: variable(globalVariable, "KEK", list)},
		{pcr: 7, typ: EFIDriverConfig, data: variable(imageSecurity, "dbx", append(list, list...))},
		{pcr: 7, typ: EFIVariableAuthority, data: variable(imageSecurity, "db", []byte("rom"))},
		{pcr: 7, typ: Separator, data: zero4},
		{pcr: 7, typ: EFIVariableAuthority, data: shimByte, digest: shimByte[:len(shimByte)-1]},
		{pcr: 7, typ: EFIVariableAuthority, data: variable(shimLock, "MokSBState", []byte{1})},
		{pcr: 7, typ: EFIVariableAuthority, data: []byte("shim"), digest: []byte("other")},
	}
	c := mustParse(t, agile([]Algorithm{SHA384}, events...)).SecureBoot("sha384")
	if c.State != On || !c.DMAProtectionOff || !c.ShimOff || len(c.KEK) != 1 || len(c.DBX) != 2 || len(c.Variables) != 3 {
		t.Fatalf("%+v", c)
	}
	if len(c.PreSeparator) != 1 || string(c.PreSeparator[0].Variable.Data) != "rom" {
		t.Errorf("before the separator: %+v", c.PreSeparator)
	}
	if len(c.PostSeparator) != 3 || string(c.PostSeparator[0].Variable.Data) != "cert" || c.PostSeparator[2].Variable != nil {
		t.Errorf("after the separator: %+v", c.PostSeparator)
	}
	if got := c.Variables[0].Vendor.String(); got != globalVariable {
		t.Errorf("GUID %s, wanted %s", got, globalVariable)
	}
}
