package pki

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
)

const pinPrefix = "sha256:"

// Pin is the short name of an authority by which a joining machine knows that
// it talks to the right cluster: "sha256:" and the SHA-256, in hexadecimal, of
// the SubjectPublicKeyInfo of the certificate, as kubeadm has it. It is no
// secret, but whoever can change it on its way can pose as the cluster. Of
// several authorities it is the first: the one that signs.
func Pin(caPEM []byte) (string, error) {
	bundle, err := parseBundle(caPEM)
	if err != nil {
		return "", fmt.Errorf("cannot pin authority: %w", err)
	}
	return pinOf(bundle[0]), nil
}

func pinOf(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return pinPrefix + hex.EncodeToString(sum[:])
}

func checkPin(pin string) error {
	digits, ok := strings.CutPrefix(pin, pinPrefix)
	if sum, err := hex.DecodeString(digits); !ok || err != nil || len(sum) != sha256.Size || strings.ToLower(digits) != digits {
		return fmt.Errorf("the pin %q of the authority is not %q and %d hexadecimal digits: copy it whole and unchanged",
			pin, pinPrefix, 2*sha256.Size)
	}
	return nil
}

// JoinTLS is for the first call of a joining machine to an agent. The machine
// has no certificate and does not know the cluster's authorities yet: it trusts
// only an agent whose authority has that pin (see Pin), and that is called
// serverName: the name or IP address that is dialled. serverName must be given
// here because a TLS connection does not know the IP address that it was made
// for: its ServerName is empty then.
func JoinTLS(pin, serverName string) (*tls.Config, error) {
	if err := checkPin(pin); err != nil {
		return nil, fmt.Errorf("cannot set up TLS to join: %w", err)
	}
	if serverName == "" {
		return nil, errors.New("cannot set up TLS to join: the name or address of the server is empty")
	}
	config := &tls.Config{
		MinVersion: tls.VersionTLS13, // both ends are kuorum's
		ServerName: serverName,
		// The roots to verify against are only known once the server has sent its
		// authority. So crypto/tls verifies nothing here but that the server has
		// the key of its certificate, and VerifyConnection all the rest; it runs
		// for every connection, and its error ends the handshake before any
		// request, with the token in it, is sent.
		InsecureSkipVerify: true,
	}
	config.VerifyConnection = func(state tls.ConnectionState) error {
		options := x509.VerifyOptions{DNSName: serverName, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
		if config.Time != nil {
			options.CurrentTime = config.Time()
		}
		return verifyPinned(state.PeerCertificates, pin, options)
	}
	return config, nil
}

// ErrOtherAuthority says that a server's authority has not the pin that was
// given.
var ErrOtherAuthority = errors.New("it is another cluster, or somebody in between")

// verifyPinned takes the chain as the server sent it: its own certificate
// first, its authority's somewhere after it.
func verifyPinned(chain []*x509.Certificate, pin string, options x509.VerifyOptions) error {
	if len(chain) < 2 {
		return errors.New("the server does not send the certificate of its authority: it is no agent of kuorum")
	}
	leaf, sent := chain[0], chain[1:]
	at := slices.IndexFunc(sent, func(cert *x509.Certificate) bool { return pinOf(cert) == pin })
	if at < 0 {
		return fmt.Errorf("the server's authority has the pin %s, but %s was given: %w; "+
			"compare the pin with the one that the cluster shows", pinOf(sent[len(sent)-1]), pin, ErrOtherAuthority)
	}
	// Only the key is pinned. Its own signature shows that the rest of the
	// certificate, its life for one, is genuine as well.
	if err := checkRoot(sent[at]); err != nil {
		return fmt.Errorf("the authority of the server: %w", err)
	}
	options.Roots = poolOf(sent[at])
	if _, err := leaf.Verify(options); err != nil {
		return fmt.Errorf("the certificate of the server: %w", err)
	}
	if !slices.Contains(leaf.Subject.Organization, GroupAgents) {
		return fmt.Errorf("%q is not an agent: its certificate needs the organization %s", leaf.Subject.CommonName, GroupAgents)
	}
	return nil
}

// What a join token is made of: lower-case base 32, so that each character is
// 5 random bits and nobody confuses 0 and O, or 1 and l.
const (
	tokenAlphabet     = "abcdefghijklmnopqrstuvwxyz234567"
	tokenIDLength     = 10
	tokenSecretLength = 32 // 160 bits
)

// tokenDomain keeps the hash of a token from being that of anything else.
const tokenDomain = "kuorum join token 1"

// Token lets one who knows it ask to become a node. Servers keep only its Hash.
type Token struct {
	// ID names the token: it is no secret, and may be listed and logged.
	ID string
	// Secret is what proves that somebody was given the token.
	Secret string
}

// NewToken draws a token: 10 characters of ID and 160 random bits of secret.
func NewToken() (Token, error) {
	id, err := randomText(tokenIDLength)
	if err != nil {
		return Token{}, err
	}
	secret, err := randomText(tokenSecretLength)
	if err != nil {
		return Token{}, err
	}
	return Token{ID: id, Secret: secret}, nil
}

// randomText draws from tokenAlphabet, whose 32 characters divide the 256
// values of a byte evenly.
func randomText(length int) (string, error) {
	text := make([]byte, length)
	if _, err := rand.Read(text); err != nil {
		return "", fmt.Errorf("cannot draw join token: %w", err)
	}
	for i, b := range text {
		text[i] = tokenAlphabet[int(b)%len(tokenAlphabet)]
	}
	return string(text), nil
}

// ParseToken reads what String wrote; white space around it is ignored. Its
// errors do not repeat the text, which may hold a secret.
func ParseToken(text string) (Token, error) {
	id, secret, ok := strings.Cut(strings.TrimSpace(text), ".")
	if !ok {
		return Token{}, errors.New("cannot read join token: it has no dot: copy the whole token, which is ID.SECRET")
	}
	if err := checkTokenPart("ID", id, tokenIDLength); err != nil {
		return Token{}, err
	}
	if err := checkTokenPart("secret", secret, tokenSecretLength); err != nil {
		return Token{}, err
	}
	return Token{ID: id, Secret: secret}, nil
}

func checkTokenPart(part, text string, length int) error {
	if len(text) != length {
		return fmt.Errorf("cannot read join token: its %s has %d characters instead of %d: copy the whole token",
			part, len(text), length)
	}
	if strings.Trim(text, tokenAlphabet) != "" {
		return fmt.Errorf("cannot read join token: its %s may have only the characters a to z and 2 to 7: copy it unchanged", part)
	}
	return nil
}

// String is the token as a person passes it on: ID.SECRET. It is a secret: do
// not log a Token, but its ID.
func (t Token) String() string { return t.ID + "." + t.Secret }

// Hash is what a server keeps of a token: SHA-256 in hexadecimal. The secret is
// too long to be guessed, so that one fast round is enough.
func (t Token) Hash() string {
	sum := sha256.Sum256([]byte(tokenDomain + "\x00" + t.ID + "\x00" + t.Secret))
	return hex.EncodeToString(sum[:])
}

// Matches says whether hash is the token's own. How long it takes does not
// depend on where they differ.
func (t Token) Matches(hash string) bool {
	return subtle.ConstantTimeCompare([]byte(t.Hash()), []byte(hash)) == 1
}
