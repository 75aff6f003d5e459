package pki

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// FuzzParseAuthority checks that no input panics, and that what is taken is an
// authority that reads back the same and can sign.
func FuzzParseAuthority(f *testing.F) {
	a := newTestAuthority(f, day)
	leaf, err := a.Issue(clientRequest())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(a.Pair().Cert, a.Pair().Key)
	f.Add(leaf.Cert, leaf.Key)
	f.Add(a.Pair().Cert, leaf.Key)
	f.Add(append(bytes.Clone(leaf.Cert), a.Pair().Cert...), a.Pair().Key)
	f.Add(encode(blockCertificate, []byte{0x30, 0x80}), encode(blockECKey, []byte{0x30, 0x80}))
	f.Fuzz(func(t *testing.T, cert, key []byte) {
		a, err := ParseAuthority(cert, key)
		if err != nil {
			return
		}
		b, err := ParseAuthority(a.Pair().Cert, a.Pair().Key)
		if err != nil {
			t.Fatalf("what was taken does not read back: %v", err)
		}
		if diff := cmp.Diff(a.Pair(), b.Pair()); diff != "" {
			t.Fatalf("round trip (-want +got):\n%s", diff)
		}
		if !a.cert.IsCA || !samePublicKey(a.key.Public(), a.cert.PublicKey) {
			t.Fatal("what was taken is not an authority with its key")
		}
	})
}
