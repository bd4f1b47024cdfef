package exchange

import (
	"fmt"
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCredentialsCountWhereTheyAreTrusted(t *testing.T) {
	for trusted, user := range map[bool]*url.Userinfo{true: url.UserPassword("user", "secret"), false: nil} {
		all := Places([]string{" http://user:secret@ocsp.example/a "}, trusted)
		require.Len(t, all, 1)
		require.Equal(t, "http://ocsp.example/a", all[0].URL)
		require.Equal(t, "http://ocsp.example/a", all[0].At.String())
		require.Equal(t, user, all[0].User)
		require.True(t, all[0].Fetchable())
	}
}

func TestPlacesThatCanBeAskedLeaveNoRoomToOthersNorTheyToThose(t *testing.T) {
	var urls []string
	for i := range 3 * MaxPlaces {
		urls = append(urls, fmt.Sprintf("ldap:///%d", i), fmt.Sprintf("http://ocsp.example/%d", i))
	}
	all := Places(urls, false)
	require.Len(t, all, 2*MaxPlaces)
	for i, p := range all {
		require.Equal(t, urls[i], p.URL)
		require.Equal(t, i%2 == 1, p.Fetchable())
	}
}
