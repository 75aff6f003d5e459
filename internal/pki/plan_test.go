package pki

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net/url"
	"strings"
	"testing"
)

// A certificate of the authority must say what was planned and no more, also
// in fields that kuorum itself never fills in.
func TestCompareFindsWhatIsMore(t *testing.T) {
	a := newTestAuthority(t, 30*day)
	req := clientRequest()
	req.Organizations, req.Names, req.Server = []string{"one"}, []string{"cp1"}, true
	for name, test := range map[string]struct {
		change func(*x509.Certificate)
		want   string // empty if nothing is found
	}{
		"nothing":       {func(*x509.Certificate) {}, ""},
		"subject":       {func(c *x509.Certificate) { c.Subject.OrganizationalUnit = []string{"x"} }, "more than it should"},
		"URI":           {func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "spiffe", Host: "x"}} }, "more than it should"},
		"mail":          {func(c *x509.Certificate) { c.EmailAddresses = []string{"a@b"} }, `names ["a@b" "cp1"]`},
		"authority":     {func(c *x509.Certificate) { c.IsCA = true }, "not that of a leaf"},
		"signing":       {func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }, "not that of a leaf"},
		"usage":         {func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageCodeSigning) }, "usages"},
		"unknown usage": {func(c *x509.Certificate) { c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{1, 2, 3}} }, "1.2.3"},
		"two names": {func(c *x509.Certificate) {
			c.Subject.ExtraNames = []pkix.AttributeTypeAndValue{
				{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "admin"},
				{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "somebody"},
				{Type: asn1.ObjectIdentifier{2, 5, 4, 10}, Value: "one"},
			}
		}, "more than it should"},
	} {
		t.Run(name, func(t *testing.T) {
			template := a.template(req)
			test.change(template)
			key, err := newKey()
			if err != nil {
				t.Fatal(err)
			}
			cert, err := certify(template, &key.PublicKey, a.cert, a.key)
			if err != nil {
				t.Fatal(err)
			}
			err = req.compare(mustParse(t, cert))
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
}
